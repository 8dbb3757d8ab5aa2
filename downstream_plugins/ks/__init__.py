"""Keyword spotting: ten words of Speech Commands, other words, and silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from downstream_plugins.ks.corpus import SILENCE, SpeechCommands
from s3prl_mtl import ClassificationExpert
from s3prl_mtl.data import (
    SAMPLE_RATE,
    ClassTable,
    Manifest,
    Row,
    inverse_class_weights,
    random_crop,
)


class KeywordTable(ClassTable):
    """Own data: the column `label` has the word.

    Of each file labelled `_silence_` a random second is read each time, as of SUPERB's noise; such
    a file may be in several splits.
    """

    task = "ks"

    def labels_of(self, row: Row) -> dict[str, Any]:
        labels = super().labels_of(row)
        return {**labels, "random_second": True} if labels["class"] == SILENCE else labels

    def may_share(self, first: str, second: str, labels: Mapping[str, Any]) -> bool:
        return bool(labels.get("random_second"))


class KeywordSpotting(ClassificationExpert):
    """SUPERB's `ks`: twelve classes, sampled equally often in training and dev."""

    name = "ks"
    corpus_type = SpeechCommands
    table_type = KeywordTable
    gain_decibels = -3.0

    def waveform(self, cut: Any, split: str, generator: torch.Generator) -> Tensor:
        waveform = super().waveform(cut, split, generator)
        if cut.custom["labels"].get("random_second"):
            waveform = random_crop(waveform, SAMPLE_RATE, generator)
        return waveform

    def draw_weights(self, split: str, cuts: Manifest) -> np.ndarray | None:
        if split == self.test_split:
            return None
        return inverse_class_weights([labels["class"] for labels in cuts.labels()])
