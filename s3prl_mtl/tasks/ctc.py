"""Base class of tasks that transcribe utterances by CTC."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from s3prl_mtl.data import MINIMUM_SAMPLES, SAMPLE_RATE, Finding, Manifest
from s3prl_mtl.errors import UserError
from s3prl_mtl.metrics import align_ctc, collapse_ctc
from s3prl_mtl.nn import FrameLevel, RNNs, ctc_loss, head_from_settings, pad_features
from s3prl_mtl.tasks.base import ScalarLogger, TaskExpert
from s3prl_mtl.tasks.chunks import Chunk

BLANK = 0
"""Index of the CTC blank, the first symbol of every vocabulary."""

WRONG_SYMBOL = "\N{REPLACEMENT CHARACTER}"
"""Stands for the unknown symbol in scored hypotheses: it equals no symbol of a reference, so that
a symbol which the vocabulary lacks cannot count as recognised."""

MAXIMUM_IMPOSSIBLE = 0.01
"""Largest fraction of a split with more symbols than frames; more is an error."""

ZEROED = "zeroed_utterances"
"""Metric of training: utterances whose loss `zero_infinity` set to 0 since the last log."""

DECODINGS = ("ctc", "merged")
"""`ctc`: collapse repeats in the utterance's own frames, then remove blanks. `merged`: as the
multi-task branch of s3prl decodes `pr` and `sf`: padding frames are decoded too, and repeats are
collapsed again after blanks are removed, so that no letter ever occurs twice in a row. Later
versions of s3prl have changed the latter."""


@dataclass(frozen=True)
class TimedSymbol:
    """A recognised symbol with its time in the audio, in seconds."""

    symbol: str
    start: float
    end: float

    @property
    def times(self) -> dict[str, float]:
        """Start and end in the printed format."""
        return {"start": round(self.start, 3), "end": round(self.end, 3)}


class TranscriptionExpert(TaskExpert):
    """Transcription by connectionist temporal classification (Graves et al., 2006).

    The head is SUPERB's: `projector`, then the model that the settings select, with one output for
    each symbol. Hypotheses are decoded greedily. A task defines its symbols
    (:meth:`make_vocabulary`), the symbols of a label (:meth:`symbols_of`), the text of symbols
    (:meth:`write`), and the scores of texts (:meth:`measure`).

    Settings, in the section `head_section`: `project_dim`, `select`, and optionally `decoding`; in
    the section `loss_section`: `zero_infinity`.
    """

    head_section: ClassVar[str] = "model"
    """Section of the settings that describes the head."""
    loss_section: ClassVar[str] = "model"
    """Section of the settings with `zero_infinity`."""
    end_symbol: ClassVar[str] = "<eos>"
    """Ends every target; removed from hypotheses and references."""
    unknown_symbol: ClassVar[str] = "<unk>"
    """Replaces symbols that are not in the vocabulary."""
    decoding: str = "ctc"
    """The default of the setting `decoding`, one of :data:`DECODINGS`."""

    timestamps: bool = False
    """Whether predictions have `times`."""

    @abstractmethod
    def make_vocabulary(self) -> list[str]:
        """The symbols by index; the first one is the blank."""

    @abstractmethod
    def symbols_of(self, labels: Mapping[str, Any]) -> Iterable[str]:
        """The symbols of an utterance's transcript, without the end symbol."""

    @abstractmethod
    def write(self, symbols: Sequence[str]) -> str:
        """The text of recognised symbols, as it is scored."""

    def answer(self, symbols: Sequence[str]) -> dict[str, Any]:
        """The prediction for an utterance in which these symbols were recognised."""
        return {"text": self.write(symbols)}

    def timed_answer(self, symbols: Sequence[TimedSymbol]) -> list[dict[str, Any]]:
        """The units of a transcript with `start` and `end`, in seconds; by default its symbols."""
        return [{"symbol": timed.symbol, **timed.times} for timed in symbols]

    def build_head(self) -> None:
        self.vocabulary = self.make_vocabulary()
        self.symbol_numbers = {symbol: number for number, symbol in enumerate(self.vocabulary)}
        for symbol in (self.end_symbol, self.unknown_symbol):
            if symbol not in self.symbol_numbers:
                raise UserError(
                    f"The vocabulary of {self.name} has no {symbol!r}.",
                    where="the checkpoint's labels, or the corpus they were read from",
                    code="label-unknown",
                )
        width = self.size_setting(self.head_section, "project_dim")
        self.choice_setting(self.head_section, "select", choices=("RNNs", "FrameLevel"))
        if "decoding" in self.setting(self.head_section):
            self.decoding = self.choice_setting(self.head_section, "decoding", choices=DECODINGS)
        self.zero_infinity = bool(self.setting(self.loss_section, "zero_infinity"))
        self.projector = nn.Linear(self.upstream_dim, width)
        self.model = head_from_settings(
            width,
            len(self.vocabulary),
            self.setting(self.head_section),
            self.upstream_rate,
            where=self.key_path(self.head_section),
        )

    def target(self, labels: Mapping[str, Any]) -> Tensor:
        """The indices of an utterance's symbols and of the end symbol, int64 (symbols + 1,)."""
        symbols = [*self.symbols_of(labels), self.end_symbol]
        unknown = self.symbol_numbers[self.unknown_symbol]
        return torch.tensor([self.symbol_numbers.get(symbol, unknown) for symbol in symbols])

    def findings(self, split: str, cuts: Manifest) -> list[Finding]:
        """Utterances with fewer frames than CTC needs, symbols that the vocabulary lacks, and a
        split without any text."""
        impossible: list[str] = []
        unknown: Counter[str] = Counter()
        with_unknown: list[str] = []
        has_text = False
        utterances = zip(cuts.ids(), cuts.labels(), cuts.durations.tolist(), strict=True)
        for utterance_id, labels, seconds in utterances:
            symbols = list(self.symbols_of(labels))
            has_text = has_text or any(self.answer(symbols).values())
            symbols.append(self.end_symbol)
            if self._frames(seconds) < frames_needed(symbols):
                impossible.append(utterance_id)
            lacking = [symbol for symbol in symbols if symbol not in self.symbol_numbers]
            unknown.update(lacking)
            with_unknown += [utterance_id] if lacking else []
        findings = []
        if not has_text:
            findings.append(
                Finding(
                    f"The transcripts of split {split!r} are all empty: its error rates are "
                    "undefined.",
                    where=f"split {split!r} of {self.name}",
                    fix="Check the transcripts.",
                    code="undefined-metric",
                    certain=True,
                )
            )
        if impossible:
            share = len(impossible) / len(cuts)
            findings.append(
                Finding(
                    f"{len(impossible)} of {len(cuts)} utterances of split {split!r} ({share:.1%}) "
                    "have more symbols than frames: CTC cannot learn them, their loss is infinite "
                    "or set to 0.",
                    where=f"utterance {impossible[0]}",
                    fix="Pair each transcript with its own audio.",
                    code="targets-too-long",
                    certain=share > MAXIMUM_IMPOSSIBLE,
                )
            )
        if unknown:
            listed = ", ".join(f"{symbol!r} {count}" for symbol, count in unknown.most_common(10))
            findings.append(
                Finding(
                    f"{len(with_unknown)} of {len(cuts)} utterances of split {split!r} have "
                    f"symbols that the vocabulary lacks, which count as errors: {listed} times.",
                    where=f"utterance {with_unknown[0]}",
                    fix="Remove or replace them in the transcripts.",
                    code="label-unknown",
                )
            )
        return findings

    def _frames(self, seconds: float) -> int:
        """Logits of an utterance."""
        spare = round(seconds * SAMPLE_RATE) - MINIMUM_SAMPLES
        assert isinstance(self.model, FrameLevel | RNNs)
        return self.model.logit_count(max(0, spare // self.upstream_rate + 1))

    def read(self, cut: Any, split: str, generator: torch.Generator) -> tuple[Any, ...]:
        return (*super().read(cut, split, generator), cut.id)

    def forward(
        self,
        split: str,
        features: Sequence[Tensor],
        targets: Sequence[Tensor],
        utterance_ids: Sequence[str] = (),
        *,
        records: dict[str, list[Any]],
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            split: the batch's split.
            features: B tensors (T_i, D).
            targets: B tensors (symbols_i + 1,), from :meth:`target`.
            utterance_ids: B names.
            records: gets `loss`; `reference`, texts; `frame_tokens`, for :meth:`hypotheses`;
                `utterance`, names; in training `zeroed`, the number of utterances whose loss was
                set to 0, if any.
        """
        logits, logit_lengths = self._logits(features)
        loss = ctc_loss(
            logits, logit_lengths, targets, blank=BLANK, zero_infinity=self.zero_infinity
        )
        records["loss"].append(loss.detach())
        tokens_of = [torch.as_tensor(target).tolist() for target in targets]
        records["reference"] += [self.text(tokens) for tokens in tokens_of]
        lengths = logit_lengths.tolist()
        if self.zero_infinity and split == self.train_split:
            short = [frames_needed(t) > n for t, n in zip(tokens_of, lengths, strict=True)]
            if any(short):
                records["zeroed"] += [1] * sum(short)
        frame_tokens = logits.detach().argmax(dim=-1).to(torch.int32)
        records["frame_tokens"] += zip(frame_tokens, lengths, strict=True)
        self.record_logits(split, logits, lengths, records)
        records["utterance"] += utterance_ids
        return loss

    def record_logits(
        self,
        split: str,
        logits: Tensor,
        lengths: Sequence[int],
        records: dict[str, list[Any]],
    ) -> None:
        """Add to the records of a batch, for another way of decoding; by default nothing.

        Args:
            split: of the batch.
            logits: (B, T, V).
            lengths: of the B utterances, in frames.
            records: as of :meth:`forward`.
        """

    def log_records(
        self,
        split: str,
        records: Mapping[str, Sequence[Any]],
        logger: ScalarLogger,
        global_step: int,
        batch_ids: Sequence[int] = (),
        total_batch_num: int = 0,
    ) -> list[str]:
        """Decode the hypotheses for :meth:`measure`, and report the number of training utterances
        whose loss was set to 0, if any."""
        if "frame_tokens" in records:
            records = {**records, "hypothesis": self.hypotheses(records["frame_tokens"])}
        saved = super().log_records(split, records, logger, global_step, batch_ids, total_batch_num)
        zeroed = len(records.get("zeroed") or ())
        if zeroed:
            logger.add_scalar(f"{self.name}/{split}-{ZEROED}", zeroed, global_step=global_step)
        return saved

    def predict(
        self, features: Sequence[Tensor], lengths_samples: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The transcript of each utterance, decoded from its own frames.

        Args:
            features: B tensors (T_i, D).
            lengths_samples: B lengths of the waveforms; not used.
        """
        return [
            self.transcribe(*output) for output in self.chunk_outputs(features, lengths_samples)
        ]

    def chunk_outputs(
        self, features: Sequence[Tensor], lengths_samples: Sequence[int]
    ) -> list[tuple[Tensor, ...]]:
        """The arguments of :meth:`transcribe` for each utterance, on the CPU.

        The most likely symbol of each frame (T_i,) and its log-probability. The log-probabilities
        of all symbols would take 100 MB an hour.
        """
        logits, logit_lengths = self._logits(features)
        best, frame_tokens = (part.cpu() for part in logits.log_softmax(dim=-1).max(dim=-1))
        rows = zip(frame_tokens.to(torch.int32), best, logit_lengths.tolist(), strict=True)
        # Copies: a slice would keep the whole batch.
        return [(tokens[:length].clone(), path[:length].clone()) for tokens, path, length in rows]

    def join_chunks(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """The transcript of the frames of all own parts, decoded at once."""
        rate = SAMPLE_RATE / (self.upstream_rate * self._subsampling)
        parts = [[chunk.own(frames, rate) for frames in chunk.output] for chunk in chunks]
        joined = (torch.cat(part) for part in zip(*parts, strict=True))
        return self.transcribe(*joined, start=chunks[0].own_start)

    @property
    def _subsampling(self) -> int:
        """Frames of the features for each frame of logits."""
        assert isinstance(self.model, FrameLevel | RNNs)
        return self.model.subsampling

    def transcribe(self, *frames: Tensor, start: float = 0.0) -> dict[str, Any]:
        """The prediction for an utterance.

        `confidence` is the geometric mean, over all frames, of the probability of the most likely
        symbol: the probability of the decoded path, normalised by its length. It is defined for
        empty transcripts, too, and between 0 and 1. With `timestamps` the prediction has `times`,
        of :meth:`timed_answer`.

        Args:
            frames: of :meth:`chunk_outputs`.
            start: of the first frame in the audio, in seconds.
        """
        tokens, path = frames
        symbols = self.timed_symbols(tokens.tolist(), start)
        answer = self.answer([timed.symbol for timed in symbols])
        answer["confidence"] = path.mean().exp().item()
        if self.timestamps:
            answer["times"] = self.timed_answer(symbols)
        return answer

    def timed_symbols(self, frame_tokens: Iterable[int], start: float = 0.0) -> list[TimedSymbol]:
        """The symbols on a path through the frames, without end symbols.

        A symbol lasts from the start of its first to the end of its last frame. A frame is as long
        as the distance of two frames of logits.

        Args:
            frame_tokens: the token of each frame (T,).
            start: of the first frame in the audio, in seconds.
        """
        seconds = self.upstream_rate * self._subsampling / SAMPLE_RATE
        timed = [
            TimedSymbol(self.vocabulary[token], start + first * seconds, start + last * seconds)
            for token, first, last in align_ctc(frame_tokens, BLANK)
        ]
        return [entry for entry in timed if entry.symbol != self.end_symbol]

    def _logits(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        padded, lengths = pad_features(features)
        logits, logit_lengths = self.model(self.projector(padded), lengths)
        return logits, logit_lengths

    def hypotheses(self, recorded: Iterable[tuple[Tensor, int]]) -> list[str]:
        """The texts of utterances, as they are scored.

        Args:
            recorded: for each utterance the arguments of :meth:`decode`.
        """
        return [self.text(self.decode(*entry), WRONG_SYMBOL) for entry in recorded]

    def decode(self, frame_tokens: Tensor, length: int) -> list[int]:
        """The tokens of a hypothesis.

        Args:
            frame_tokens: the most likely token of each frame, (T,) with padding.
            length: number of frames before the padding.
        """
        if self.decoding == "ctc":
            return collapse_ctc(frame_tokens[:length], BLANK)
        end = self.symbol_numbers[self.end_symbol]
        return collapse_ctc(t for t in collapse_ctc(frame_tokens, BLANK) if t != end)

    def text(self, tokens: Iterable[int], unknown: str | None = None) -> str:
        """The text of tokens (see :meth:`write`), without end symbols.

        Args:
            tokens: indices of the vocabulary.
            unknown: written in place of the unknown symbol.
        """
        symbols = [self.vocabulary[token] for token in tokens]
        if unknown is not None:
            symbols = [unknown if symbol == self.unknown_symbol else symbol for symbol in symbols]
        return self.write([symbol for symbol in symbols if symbol != self.end_symbol])


def frames_needed(symbols: Sequence[Any]) -> int:
    """The fewest frames of a CTC path of these symbols: a blank separates equal ones."""
    return len(symbols) + sum(a == b for a, b in pairwise(symbols))
