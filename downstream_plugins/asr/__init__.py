"""Speech recognition on LibriSpeech: characters by CTC."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from downstream_plugins.asr.corpus import WORD_BOUNDARY, LibriSpeech, spell
from downstream_plugins.asr.table import TextTable
from s3prl_mtl import Metric, TranscriptionExpert
from s3prl_mtl.metrics import token_error_rate

SCORINGS = ("reference", "branch")


class SpeechRecognition(TranscriptionExpert):
    """SUPERB's `asr`: letters by CTC, decoded greedily, no language model.

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
    )
    worst_score = 100.0
    head_section = "modelrc"
    loss_section = "datarc"
    end_symbol = "</s>"

    @classmethod
    def conditions(cls, settings: Mapping[str, Any]) -> str:
        scoring = (settings.get("modelrc") or {}).get("scoring", "branch")
        rates = ", rates over the length of the hypothesis" if scoring == "branch" else ""
        return f"greedy decoding without a language model{rates}"

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

    def measure(self, split: str, records: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        texts = records["reference"], records["hypothesis"]
        words = [[words_of(text) for text in side] for side in texts]
        units: list[Sequence[Sequence[str]]] = [[t.split() for t in side] for side in texts]
        rate: Callable[[Any, Any], float] = token_error_rate
        if self.scoring == "branch":
            units, rate = list(texts), branch_error_rate
        return self.defined(split, {"wer": lambda: rate(*words), "uer": lambda: rate(*units)})


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
