"""Own data for speech recognition: a table with the column `text`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from downstream_plugins.asr.corpus import build_symbols
from s3prl_mtl.data import Row, TableCorpus, TextRule
from s3prl_mtl.errors import UserError


class TextTable(TableCorpus):
    """Utterances with their words.

    Args:
        manifests: the table of each split.
        text: how text is normalised, see :class:`s3prl_mtl.data.TextRule`.
    """

    task: ClassVar[str] = "asr"
    required = ("text",)

    def __init__(
        self,
        manifests: Mapping[str, str | os.PathLike[str]],
        text: Mapping[str, str] | None = None,
    ) -> None:
        where = f"{self.task}.downstream_expert.datarc.text"
        self.rule = TextRule.from_settings(text or {}, where)
        super().__init__(manifests, text=dict(text or {}))

    def labels_of(self, row: Row) -> dict[str, Any]:
        text = self.rule(str(row.values["text"]))
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
