"""Own data for speech recognition: a table with the column `text`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from downstream_plugins.asr.corpus import WORD_BOUNDARY, build_symbols, check_confidence
from downstream_plugins.asr.pseudo_labels import PseudoLabels, read_pseudo_labels
from s3prl_mtl.data import Row, TableCorpus, TextRule, Utterance, absolute
from s3prl_mtl.errors import UserError


class TextTable(TableCorpus):
    """Utterances with their words.

    Args:
        manifests: the table of each split.
        text: how text is normalised, see :class:`s3prl_mtl.data.TextRule`.
        pseudo_labels: a file of predicted transcripts, added to the training table
            (:mod:`downstream_plugins.asr.pseudo_labels`).
        pseudo_confidence: the smallest confidence of a predicted transcript, from 0 to 1.
    """

    task: ClassVar[str] = "asr"
    required = ("text",)

    def __init__(
        self,
        manifests: Mapping[str, str | os.PathLike[str]],
        text: Mapping[str, str] | None = None,
        pseudo_labels: str | os.PathLike[str] | None = None,
        pseudo_confidence: float = 0.9,
    ) -> None:
        where = f"{self.task}.downstream_expert.datarc.text"
        self.rule = TextRule.from_settings(text or {}, where)
        self.pseudo_labels = None if pseudo_labels is None else absolute(pseudo_labels)
        self.pseudo_confidence = pseudo_confidence
        added: dict[str, Any] = {}
        if self.pseudo_labels is not None:
            check_confidence(pseudo_confidence)
            added = {"pseudo_labels": self.pseudo_labels, "pseudo_confidence": pseudo_confidence}
        super().__init__(manifests, text=dict(text or {}), **added)

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.pseudo_labels is not None:
            expected = "the output of `s3prl-mtl predict`"
            problems += self.missing_file(self.pseudo_labels, expected, "pseudo_labels")
        return problems

    def utterances(self, split: str) -> list[Utterance]:
        transcribed = super().utterances(split)
        if self.pseudo_labels is None or split != self.splits[0]:
            return transcribed
        return transcribed + self._predicted(transcribed).utterances

    def notes(self) -> list[str]:
        if self.pseudo_labels is None:
            return []
        read = self._predicted(super().utterances(self.splits[0]))
        return [read.summary(self.pseudo_labels, self.pseudo_confidence)]

    def _predicted(self, transcribed: Sequence[Utterance]) -> PseudoLabels:
        assert self.pseudo_labels is not None
        known = (utterance.path for utterance in transcribed)
        return read_pseudo_labels(self.pseudo_labels, self.pseudo_confidence, known)

    def labels_of(self, row: Row) -> dict[str, Any]:
        # The boundary of words is a blank wherever it occurs.
        text = " ".join(self.rule(row.text("text")).replace(WORD_BOUNDARY, " ").split())
        if not text:
            raise UserError(
                f"Nothing is left of the text {row.values['text']!r}.",
                where=row.source,
                fix="Leave the row out, or choose another rule (`datarc.text`).",
                code="corpus-malformed",
            )
        return {"text": text}

    @classmethod
    def columns_of(cls, labels: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": labels["text"]}

    def label_space(self) -> dict[str, Any]:
        rows = self.table(self.splits[0]).rows
        return {"symbols": build_symbols(self.labels_of(row)["text"] for row in rows)}
