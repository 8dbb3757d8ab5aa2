"""Own data for phoneme recognition: a table with the column `phones`, or `text` and a lexicon."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from downstream_plugins.pr.corpus import (
    SPECIAL_TOKENS,
    VOCABULARY,
    missing_words,
    pronounce,
    read_lexicon,
)
from s3prl_mtl.data import Row, Table, TableCorpus, TextRule, absolute, listed_once, texts_of
from s3prl_mtl.errors import UserError


class PhoneTable(TableCorpus):
    """Utterances with their phones.

    Any phones in the column `phones`, separated by blanks; or the words of `text`, which take their
    phones from lexicon files.

    Args:
        manifests: the table of each split.
        lexicon: lexicon files for tables with `text`.
        text: how text is normalised, see :class:`s3prl_mtl.data.TextRule`.
    """

    task: ClassVar[str] = "pr"
    optional = ("text", "phones")

    def __init__(
        self,
        manifests: Mapping[str, str | os.PathLike[str]],
        lexicon: Sequence[str | os.PathLike[str]] | None = None,
        text: Mapping[str, str] | None = None,
    ) -> None:
        files = [lexicon] if isinstance(lexicon, str | os.PathLike) else lexicon or []
        self.lexicon = [absolute(file) for file in files]
        where = f"{self.task}.downstream_expert.datarc.text"
        self.rule = TextRule.from_settings(text or {}, where)
        super().__init__(manifests, lexicon=self.lexicon, text=dict(text or {}))

    def problems(self) -> list[str]:
        problems = super().problems()
        for file in self.lexicon:
            problems += self.missing_file(file, "a lexicon (`WORD  P1 P2 ...` a line)", "lexicon")
        return problems

    def labels_of(self, row: Row) -> dict[str, Any]:
        if "phones" in row.values:
            return {"phones": self._phones(row)}
        return {"phones": pronounce(self._text(row), self.pronunciations)}

    @listed_once
    def pronunciations(self) -> dict[str, list[str]]:
        """The lexicon."""
        return read_lexicon(self.lexicon)

    def check_rows(self, table: Table) -> None:
        """Check that each row has phones, or words with a pronunciation."""
        if "phones" in table.columns:
            table.require(["phones"])
            return
        table.require(["text"])
        missing: dict[str, str] = {}
        for row in table.rows:
            for word in self._text(row).split():
                if word not in self.pronunciations:
                    missing.setdefault(word, row.source)
        if missing:
            raise missing_words(missing, self.lexicon)

    def _phones(self, row: Row) -> list[str]:
        phones = texts_of(row, "phones")
        special = [phone for phone in phones if phone in SPECIAL_TOKENS]
        if special or not phones:
            raise UserError(
                f"{special[0]!r} is not a phone." if special else "The row has no phones.",
                where=row.source,
                fix="Write the phones that are heard, or leave the row out.",
                code="corpus-malformed",
            )
        return phones

    def _text(self, row: Row) -> str:
        return self.rule(row.text("text"))

    @classmethod
    def columns_of(cls, labels: Mapping[str, Any]) -> dict[str, Any]:
        return {"phones": " ".join(labels["phones"])}

    def label_space(self) -> dict[str, Any]:
        """ARPABET with stress where phones come from a lexicon, else the phones of training."""
        table = self.table(self.splits[0])
        if "phones" not in table.columns:
            return {"vocabulary": list(VOCABULARY)}
        phones = {phone for row in table.rows for phone in self.labels_of(row)["phones"]}
        return {"vocabulary": [*SPECIAL_TOKENS, *sorted(phones)]}
