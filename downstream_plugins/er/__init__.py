"""Emotion recognition on IEMOCAP."""

from __future__ import annotations

from downstream_plugins.er.corpus import IEMOCAP
from s3prl_mtl import ClassificationExpert
from s3prl_mtl.data import ClassTable


class EmotionTable(ClassTable):
    """Own data: the column `label` has the emotion."""

    task = "er"


class EmotionRecognition(ClassificationExpert):
    """SUPERB's `er`: neutral, happy, angry or sad, one session held out."""

    name = "er"
    corpus_type = IEMOCAP
    table_type = EmotionTable
