"""Speech recognition on LibriSpeech: characters by CTC."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar

from torch import Tensor

from downstream_plugins.asr.beam_search import BeamSearch, DecoderSettings
from downstream_plugins.asr.corpus import WORD_BOUNDARY, LibriSpeech, spell
from downstream_plugins.asr.table import TextTable
from s3prl_mtl import Metric, TimedSymbol, TranscriptionExpert
from s3prl_mtl.metrics import token_error_rate

SCORINGS = ("reference", "branch")


class SpeechRecognition(TranscriptionExpert):
    """SUPERB's `asr`: letters by CTC, decoded greedily, and with a language model where one is set.

    With `decoder.lm`, evaluated splits have the metric `wer_lm` beside `wer` and `uer`, which stay
    those of greedy decoding; predictions are those of the language model.

    `modelrc.scoring` selects SUPERB's rates, relative to the length of the reference, or those of
    the multi-task branch, which swaps reference and hypothesis. Without the key, as in settings of
    the branch, the head reports the branch's rates.
    """

    name = "asr"
    corpus_type = LibriSpeech
    table_type = TextTable
    dev_split = "dev-clean"
    test_split = "test-clean"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("wer", "lower", "WER", range=(0.0, math.inf)),
        Metric("uer", "lower", "UER", range=(0.0, math.inf)),
        Metric("wer_lm", "lower", "WER with LM", True, (0.0, math.inf), optional=True),
    )
    worst_score = 100.0
    head_section = "modelrc"
    loss_section = "datarc"
    end_symbol = "</s>"
    takes_decoder = True
    """Whether there is a section `decoder` in the settings."""
    nbest: int = 1
    """Transcripts of a prediction, at most; more than one need a language model."""

    @classmethod
    def conditions(cls, settings: Mapping[str, Any]) -> str:
        scoring = (settings.get("modelrc") or {}).get("scoring", "branch")
        rates = ", rates over the length of the hypothesis" if scoring == "branch" else ""
        decoder = settings.get("decoder") or {}
        if not decoder.get("lm"):
            # An evaluation with a decoder may have added WER with LM.
            return f"WER and UER of greedy decoding without a language model{rates}"
        return (
            f"WER and UER of greedy decoding without a language model, WER with LM of "
            f"{DecoderSettings.from_settings(decoder, cls.name)}{rates}"
        )

    @classmethod
    def problems(cls, downstream_expert: Mapping[str, Any]) -> list[str]:
        known = cls.make_corpus(downstream_expert.get("datarc") or {}).splits
        named = (downstream_expert.get("decoder") or {}).get("splits") or ()
        unknown = [
            f"`decoder.splits` names {split!r}, which the corpus does not have; its splits are "
            f"{', '.join(known)}"
            for split in named
            if split not in known
        ]
        return super().problems(downstream_expert) + unknown

    def make_vocabulary(self) -> list[str]:
        return self.label_list("symbols")

    def symbols_of(self, labels: Mapping[str, Any]) -> Iterable[str]:
        return spell(labels["text"])

    def write(self, symbols: Sequence[str]) -> str:
        return " ".join(symbols)

    def answer(self, symbols: Sequence[str]) -> dict[str, Any]:
        return {"text": " ".join(words_of(self.write(symbols)))}

    def build_head(self) -> None:
        super().build_head()
        self.scoring = "branch"
        if "scoring" in self.setting("modelrc"):
            self.scoring = self.choice_setting("modelrc", "scoring", choices=SCORINGS)
        where = self.key_path("decoder")
        settings = DecoderSettings.from_settings(self.settings.get("decoder") or {}, where)
        self.search: BeamSearch | None = None
        if settings is not None:
            self.search = BeamSearch(settings, self.vocabulary, self.end_symbol, where)

    def record_logits(
        self,
        split: str,
        logits: Tensor,
        lengths: Sequence[int],
        records: dict[str, list[Any]],
    ) -> None:
        """Decode with the language model: records `lm_hypothesis`, words."""
        if self.search is None:
            return
        splits = self.search.settings.splits
        if self.training if splits is None else split not in splits:
            return
        frames = logits.detach().log_softmax(dim=-1).cpu()
        for rows, length in zip(frames, lengths, strict=True):
            records["lm_hypothesis"].append(text_of(self.search(rows[:length])[0].words))

    def chunk_outputs(
        self, features: Sequence[Tensor], lengths_samples: Sequence[int]
    ) -> list[tuple[Tensor, ...]]:
        """Those of the base class; with a language model, the log-probabilities (T_i, V)."""
        if self.search is None:
            return super().chunk_outputs(features, lengths_samples)
        logits, lengths = self._logits(features)
        frames = logits.log_softmax(dim=-1).cpu()
        return [(rows[:n].clone(),) for rows, n in zip(frames, lengths.tolist(), strict=True)]

    def transcribe(self, *frames: Tensor, start: float = 0.0) -> dict[str, Any]:
        """The transcript of the base class; with a language model, its best transcript.

        With `nbest` above 1 the prediction has `nbest`: different transcripts, best first, each
        with `text` and `score`.
        """
        if self.search is None:
            return super().transcribe(*frames, start=start)
        (log_probabilities,) = frames
        found = self.search(log_probabilities)
        best = found[0]
        text = text_of(best.words)
        confidence = math.exp(best.log_probability / len(log_probabilities))
        answer: dict[str, Any] = {"text": text, "confidence": min(confidence, 1.0)}
        if self.nbest > 1:
            answer["nbest"] = [
                {"text": text_of(h.words), "score": h.score} for h in found[: self.nbest]
            ]
        if self.timestamps:
            symbols = self.timed_symbols(best.frame_tokens, start)
            answer["times"] = timed_words(symbols, text.split())
        return answer

    def timed_answer(self, symbols: Sequence[TimedSymbol]) -> list[dict[str, Any]]:
        return timed_words(symbols, words_of(self.write([timed.symbol for timed in symbols])))

    def measure(self, split: str, records: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        texts = records["reference"], records["hypothesis"]
        words = [[words_of(text) for text in side] for side in texts]
        units: list[Sequence[Sequence[str]]] = [[t.split() for t in side] for side in texts]
        rate: Callable[[Any, Any], float] = token_error_rate
        if self.scoring == "branch":
            units, rate = list(texts), branch_error_rate
        scores = {"wer": lambda: rate(*words), "uer": lambda: rate(*units)}
        if "lm_hypothesis" in records:
            with_lm = [text.split() for text in records["lm_hypothesis"]]
            scores["wer_lm"] = lambda: rate(words[0], with_lm)
        return self.defined(split, scores)


def branch_error_rate(
    references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]
) -> float:
    """Edits over the length of the hypotheses, as the multi-task branch of s3prl scores.

    It swaps reference and hypothesis. Where all hypotheses are empty its rate is 1.

    Raises:
        ValueError, UserError: as :func:`token_error_rate`.
    """
    if any(references) and not any(hypotheses):
        return 1.0
    return token_error_rate(hypotheses, references)


def words_of(spelled: str) -> list[str]:
    """The words of `H I | Y O U |`."""
    return spelled.replace(" ", "").replace(WORD_BOUNDARY, " ").split()


def text_of(words: Iterable[str]) -> str:
    """The text of a lexicon's words, in upper case as references are."""
    return " ".join(words).upper()


def timed_words(symbols: Iterable[TimedSymbol], words: Sequence[str]) -> list[dict[str, Any]]:
    """Words with the start of their first and the end of their last symbol.

    Args:
        symbols: of the words, in order, with word boundaries between them.
        words: as they are written, which may differ from their symbols.
    """
    groups = groupby(symbols, key=lambda timed: timed.symbol == WORD_BOUNDARY)
    spelled = [list(group) for is_boundary, group in groups if not is_boundary]
    # The beam may end within a word, which is not in the transcript.
    return [
        {"word": word, "start": group[0].times["start"], "end": group[-1].times["end"]}
        for word, group in zip(words, spelled, strict=False)
    ]
