"""Own data for slot filling: a table with the columns `text` and `slots`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from downstream_plugins.sf.corpus import OUTSIDE, VOCABULARY
from s3prl_mtl.data import Row, TableCorpus, texts_of
from s3prl_mtl.errors import UserError


class SlotTable(TableCorpus):
    """Utterances with their words and the slot of each word, `O` for none.

    The slots are separated by blanks or a list: `O O artist artist` for `play some miles davis`.
    """

    task: ClassVar[str] = "sf"
    required = ("text", "slots")

    def labels_of(self, row: Row) -> dict[str, Any]:
        tags = texts_of(row, "slots")
        words = row.text("text").split()
        if len(tags) != len(words):
            raise UserError(
                f"The text has {len(words)} words, `slots` {len(tags)}.",
                where=row.source,
                fix="Name the slot of each word, `O` for none.",
                code="corpus-malformed",
            )
        return {"iob_words": words, "iob_slots": tags}

    @classmethod
    def columns_of(cls, labels: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": " ".join(labels["iob_words"]), "slots": " ".join(labels["iob_slots"])}

    def label_space(self) -> dict[str, Any]:
        """SUPERB's characters, and the slots of the training table, sorted."""
        rows = self.table(self.splits[0]).rows
        slots = {slot for row in rows for slot in self.labels_of(row)["iob_slots"]}
        return {"vocabulary": list(VOCABULARY), "slots": sorted(slots - {OUTSIDE})}

    def classes(self, labels: Mapping[str, Any]) -> list[str]:
        return sorted({f"slot {name}" for name in labels["iob_slots"] if name != OUTSIDE})

    def declared_classes(self) -> list[str]:
        return [f"slot {name}" for name in self.label_space()["slots"]]
