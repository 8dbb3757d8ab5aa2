"""Emotion recognition on IEMOCAP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

    @classmethod
    def conditions(cls, settings: Mapping[str, Any]) -> str:
        datarc = settings.get("datarc") or {}
        if datarc.get("manifests"):
            return ""
        fold = datarc.get("test_fold", "fold1")
        session = str(fold).replace("fold", "Session")
        return f"tested on the two speakers of {session} ({fold} of 5), trained on the others"
