"""Own data for speech recognition: a table with the column `text`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from downstream_plugins.asr.corpus import WORD_BOUNDARY, build_symbols
from downstream_plugins.asr.pseudo_labels import PseudoLabelFile
from s3prl_mtl.data import Row, TableCorpus, TextRule, Utterance
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
        self.pseudo = PseudoLabelFile(pseudo_labels, pseudo_confidence)
        super().__init__(manifests, text=dict(text or {}), **self.pseudo.settings)

    def problems(self) -> list[str]:
        return super().problems() + self.pseudo.problems(self)

    def utterances(self, split: str) -> list[Utterance]:
        transcribed = super().utterances(split)
        is_training = split == self.splits[0]
        return transcribed + (self.pseudo.read(transcribed).utterances if is_training else [])

    def notes(self) -> list[str]:
        return self.pseudo.notes(lambda: super(TextTable, self).utterances(self.splits[0]))

    def labels_of(self, row: Row) -> dict[str, Any]:
        # The boundary of words is a blank wherever it occurs.
        text = " ".join(self.rule(row.text("text")).replace(WORD_BOUNDARY, " ").split())
        if not text:
            raise UserError(
                f"The text {row.values['text']!r} is empty after normalisation.",
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
