"""Emotion recognition on IEMOCAP."""

from __future__ import annotations

from downstream_plugins.er.corpus import IEMOCAP
from s3prl_mtl import ClassificationExpert


class EmotionRecognition(ClassificationExpert):
    """SUPERB's `er`: neutral, happy, angry or sad, one session held out."""

    name = "er"
    corpus_type = IEMOCAP
