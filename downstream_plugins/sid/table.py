"""Own data of `sid`."""

from __future__ import annotations

from typing import Any

from s3prl_mtl.data import ClassTable, Row, Table
from s3prl_mtl.errors import UserError

COLUMNS = ("speaker", "label")


class SpeakerTable(ClassTable):
    """Own data: the column `speaker`, or `label` as in tables of other classes."""

    task = "sid"
    required = ()
    optional = COLUMNS
    column = "speaker"

    def check_rows(self, table: Table) -> None:
        named = [column for column in COLUMNS if column in table.columns]
        if len(named) < len(COLUMNS):
            table.require(named or [self.column])
            return
        for row in table.rows:
            values = {row.text(column) for column in COLUMNS if column in row.values}
            if not values:
                raise UserError(
                    "The row has neither a `speaker` nor a `label`.",
                    where=row.source,
                    fix="Complete it, or leave it out.",
                    code="corpus-malformed",
                )
            if len(values) > 1:
                raise UserError(
                    f"The row has the speaker {row.text('speaker')!r} and the label "
                    f"{row.text('label')!r}, which are the same thing for sid.",
                    where=row.source,
                    fix="Leave out the column that does not name the speaker.",
                    code="corpus-inconsistent",
                )

    def labels_of(self, row: Row) -> dict[str, Any]:
        speaker = _speaker(row)
        return {"class": speaker, "speaker": speaker}

    def training_values(self, column: str) -> list[str]:
        return sorted({_speaker(row) for row in self.table(self.splits[0]).rows})


def _speaker(row: Row) -> str:
    return row.text("speaker" if "speaker" in row.values else "label")
