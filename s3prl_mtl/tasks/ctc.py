"""The base of tasks that write down what is said, token by token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from s3prl_mtl.errors import UserError
from s3prl_mtl.metrics import collapse_ctc
from s3prl_mtl.nn import ctc_loss, head_from_settings, pad_features
from s3prl_mtl.tasks.base import TaskExpert

BLANK = 0
"""The number of CTC's blank: the first symbol of every vocabulary."""

DECODINGS = ("ctc", "merged")
"""`ctc`: of an utterance's own frames equal neighbours are merged, then blanks are left out.
`merged`: as the multi-task branch of s3prl decodes `pr` and `sf`. The batch's padding is read too,
and neighbours that are equal once blanks are left out are merged again, so that no letter is ever
double. s3prl has since changed the latter."""


class TranscriptionExpert(TaskExpert):
    """A task that learns sequences of symbols by connectionist temporal classification.

    The head is SUPERB's: `projector`, then the model that the settings select, with one output for
    each symbol. Hypotheses are decoded greedily. A task states its symbols, how a label becomes
    symbols (:meth:`symbols_of`), how symbols become text (:meth:`write`), and how texts are scored.

    Settings, in the section `head_section`: `project_dim`, `select`, and if wanted
    `decoding`; in the section `loss_section`: `zero_infinity`.
    """

    head_section: ClassVar[str] = "model"
    """The section of the settings that describes the head."""
    loss_section: ClassVar[str] = "model"
    """The section of the settings that holds `zero_infinity`."""
    end_symbol: ClassVar[str] = "<eos>"
    """Closes every target; hypotheses and references are read without it."""
    unknown_symbol: ClassVar[str] = "<unk>"
    """Stands for every symbol that the vocabulary lacks."""
    decoding: str = "ctc"
    """How hypotheses are decoded where the settings do not say so: one of :data:`DECODINGS`."""

    @abstractmethod
    def make_vocabulary(self) -> list[str]:
        """The symbols by number; the first one is the blank."""

    @abstractmethod
    def symbols_of(self, labels: Mapping[str, Any]) -> Iterable[str]:
        """The symbols that are to be recognised in an utterance, without the end symbol."""

    @abstractmethod
    def write(self, symbols: Sequence[str]) -> str:
        """The text of recognised symbols, which is what is scored."""

    def answer(self, symbols: Sequence[str]) -> dict[str, Any]:
        """What is told of an utterance in which these symbols were recognised."""
        return {"text": self.write(symbols)}

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
        """The numbers of an utterance's symbols and of the end symbol, int64."""
        symbols = [*self.symbols_of(labels), self.end_symbol]
        unknown = self.symbol_numbers[self.unknown_symbol]
        return torch.tensor([self.symbol_numbers.get(symbol, unknown) for symbol in symbols])

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
            targets: B times what :meth:`target` gives.
            utterance_ids: names of the utterances.
            records: takes `loss`; `reference` and `hypothesis`, texts; `utterance`, the names.
        """
        logits, logit_lengths = self._logits(features)
        loss = ctc_loss(
            logits, logit_lengths, targets, blank=BLANK, zero_infinity=self.zero_infinity
        )
        frame_tokens = logits.detach().argmax(dim=-1).cpu()
        records["loss"].append(loss.item())
        records["reference"] += [self.text(torch.as_tensor(target).tolist()) for target in targets]
        for tokens, length in zip(frame_tokens, logit_lengths.tolist(), strict=True):
            records["hypothesis"].append(self.text(self.decode(tokens, length)))
        records["utterance"] += utterance_ids
        return loss

    def predict(
        self, features: Sequence[Tensor], lengths_samples: Sequence[int]
    ) -> list[dict[str, Any]]:
        """What is said in each utterance, decoded from its own frames."""
        logits, logit_lengths = self._logits(features)
        frame_tokens = logits.argmax(dim=-1).cpu()
        answers = []
        for tokens, length in zip(frame_tokens, logit_lengths.tolist(), strict=True):
            symbols = [self.vocabulary[t] for t in collapse_ctc(tokens[:length], BLANK)]
            answers.append(self.answer([s for s in symbols if s != self.end_symbol]))
        return answers

    def _logits(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        padded, lengths = pad_features(features)
        logits, logit_lengths = self.model(self.projector(padded), lengths)
        return logits, logit_lengths

    def decode(self, frame_tokens: Tensor, length: int) -> list[int]:
        """The tokens of a hypothesis.

        Args:
            frame_tokens: the most likely token of each frame of the padded batch (T,).
            length: how many of the frames are the utterance's own.
        """
        if self.decoding == "ctc":
            return collapse_ctc(frame_tokens[:length], BLANK)
        end = self.symbol_numbers[self.end_symbol]
        return collapse_ctc(t for t in collapse_ctc(frame_tokens, BLANK) if t != end)

    def text(self, tokens: Iterable[int]) -> str:
        """The text of tokens, as :meth:`write` writes their symbols."""
        symbols = (self.vocabulary[token] for token in tokens)
        return self.write([symbol for symbol in symbols if symbol != self.end_symbol])
