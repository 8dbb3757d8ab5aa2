"""Phoneme recognition on LibriSpeech."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from downstream_plugins.pr.corpus import LibriSpeechPhones
from downstream_plugins.pr.table import PhoneTable
from s3prl_mtl import Metric, TimedSymbol, TranscriptionExpert
from s3prl_mtl.metrics import word_error_rate


class PhonemeRecognition(TranscriptionExpert):
    """SUPERB's `pr`: phones by CTC from a linear layer over each frame."""

    name = "pr"
    corpus_type = LibriSpeechPhones
    table_type = PhoneTable
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("per", "lower", "PER", range=(0.0, math.inf)),)
    worst_score = float(2**31)
    decoding = "merged"  # default for settings of s3prl's branch, which lack the key

    def make_vocabulary(self) -> list[str]:
        return self.label_list("vocabulary")

    def symbols_of(self, labels: Mapping[str, Any]) -> Iterable[str]:
        return labels["phones"]

    def write(self, symbols: Sequence[str]) -> str:
        return " ".join(symbols)

    def answer(self, symbols: Sequence[str]) -> dict[str, Any]:
        return {"phones": list(symbols)}

    def timed_answer(self, symbols: Sequence[TimedSymbol]) -> list[dict[str, Any]]:
        return [{"phone": timed.symbol, **timed.times} for timed in symbols]

    def measure(self, split: str, records: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        references, hypotheses = records["reference"], records["hypothesis"]
        return {"per": word_error_rate(references, hypotheses, separator=" ")}
