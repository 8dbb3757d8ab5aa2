"""Tables of utterances, one row each, from the formats in which people keep their own data.

| path | rows |
| --- | --- |
| `.csv`, `.tsv` | the lines after the header; UTF-8 |
| `.jsonl`, `.ndjson` | objects, or the cuts of a lhotse CutSet; also `.gz` |
| `.parquet`, or a folder of them | rows |
| a folder with `wav.scp` | Kaldi's `text`, `utt2spk`, `segments`, and `utt2<column>` |
| a folder with `cuts.*.jsonl.gz`, `recording.*.tar` | the cuts of lhotse Shar |
| a folder of `datasets.save_to_disk` | the examples of a split |
| `hf:USER/NAME@CONFIG:SPLIT` | the examples of a split that `datasets` fetches |
| a pattern such as `data/train-*.parquet` | the rows of these files |

`path` is relative to the table. Hugging Face's `audio` column holds the bytes of a file or its
path; bytes are written below the cache, once.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_mtl.data.folders import absolute
from s3prl_mtl.data.table_formats import Row, files_of, malformed, rows_of_file, table_path
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.fileio.atomic import atomic_path

COMMON = ("id", "path", "audio", "start", "duration", "speaker")
"""Columns of every table; `path` or `audio` is required."""


@dataclass(frozen=True)
class Table:
    """The rows of a file or folder.

    Args:
        path: the file or folder.
        columns: in the order in which they first occur.
        rows: all rows.
    """

    path: Path
    columns: Sequence[str]
    rows: Sequence[Row]

    @property
    def folder(self) -> Path:
        """The folder to which its paths are relative."""
        return self.path if self.path.is_dir() else self.path.parent

    def require(self, columns: Sequence[str]) -> None:
        """Check that columns exist, and that no row lacks a value of them.

        Raises:
            UserError: names the column, or the first row without a value.
        """
        for column in columns:
            if column not in self.columns:
                raise UserError(
                    f"The table has no column {column!r}; it has {', '.join(self.columns)}.",
                    where=str(self.path),
                    fix=nearest(column, list(self.columns)),
                    code="corpus-malformed",
                )
            empty = [row for row in self.rows if column not in row.values]
            if empty:
                raise UserError(
                    f"{len(empty)} of {len(self.rows)} rows have no value of {column!r}.",
                    where=empty[0].source,
                    fix="Complete them, or leave these rows out.",
                    code="corpus-malformed",
                )


def read_table(path: Path) -> Table:
    """The rows of a table.

    Raises:
        UserError: the file or folder is missing, of an unknown format, malformed or empty.
    """
    path = table_path(path)
    files = files_of(path)
    if not files:
        raise UserError(
            "The table does not exist.",
            where=str(path),
            fix="Name it with `--manifest TASK:SPLIT=FILE`, also where it has moved.",
            code="file-missing",
        )
    rows = [
        Row({key: value for key, value in row.values.items() if not _is_missing(value)}, row.source)
        for file in files
        for row in rows_of_file(file)
    ]
    if not rows:
        raise UserError("The table has no rows.", where=str(path), code="corpus-empty")
    columns = list(dict.fromkeys(key for row in rows for key in row.values))
    return Table(path, columns, rows)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file, atomically; lists become JSON."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()}
            )


def audio_path(row: Row, folder: Path) -> Path:
    """The audio file of a row.

    Args:
        row: of a table.
        folder: of the table (:attr:`Table.folder`), to which its paths are relative.

    Raises:
        UserError: the row names none.
    """
    audio = row.values.get("audio")
    named = row.values.get("path") or (audio.get("path") if isinstance(audio, Mapping) else audio)
    if not isinstance(named, str):
        raise malformed(
            f"The row has no audio: {named!r} is not a path."
            if named
            else "The row has no audio: neither `path` nor `audio`.",
            row.source,
        )
    if "\0" in named:
        raise malformed(f"{named!r} is not a path: it has a NUL character.", row.source)
    return absolute(os.path.join(folder, os.path.expanduser(named)))
