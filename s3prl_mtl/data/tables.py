"""Tables of utterances, one row each, from the formats in which people keep their own data.

| path | rows |
| --- | --- |
| `.csv`, `.tsv` | the lines after the header; UTF-8 |
| `.jsonl`, `.ndjson` | objects, or the cuts of a lhotse CutSet; also `.gz` |
| `.parquet`, or a folder of them | rows |
| a folder with `wav.scp` | Kaldi's `text`, `utt2spk`, `segments`, and `utt2<column>` |
| a folder of `datasets.save_to_disk` | the examples of a split |

`path` is relative to the table. Hugging Face's `audio` column holds the bytes of a file or its
path; bytes are written below the cache, once.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from s3prl_mtl.data.folders import absolute, list_files, note_read, read_lines
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.fileio.atomic import atomic_path
from s3prl_mtl.fileio.cache import default_cache_dir

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".parquet")
COMMON = ("id", "path", "audio", "start", "duration", "speaker")
"""Columns of every table; `path` or `audio` is required."""


@dataclass(frozen=True)
class Row:
    """An utterance of a table.

    Args:
        values: by column; missing values are left out.
        source: the file and line or row, for messages.
    """

    values: Mapping[str, Any]
    source: str


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
    path = absolute(path)
    note_read(path)
    if not path.exists():
        raise UserError("The table does not exist.", where=str(path), code="file-missing")
    rows = [
        Row({key: value for key, value in row.values.items() if not _is_missing(value)}, row.source)
        for row in _rows(path)
    ]
    if not rows:
        raise UserError("The table has no rows.", where=str(path), code="corpus-empty")
    columns = list(dict.fromkeys(key for row in rows for key in row.values))
    return Table(path, columns, rows)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _rows(path: Path) -> Iterator[Row]:
    if path.is_dir():
        names = set(list_files(path))
        if "wav.scp" in names:
            return _kaldi_rows(path, names)
        if "state.json" in names:
            return _saved_rows(path)
        if any(name.endswith(".parquet") for name in names):
            files = sorted(name for name in names if name.endswith(".parquet"))
            return (row for name in files for row in _parquet_rows(path / name))
    elif path.suffix in (".csv", ".tsv"):
        return _delimited_rows(path, "," if path.suffix == ".csv" else "\t")
    elif path.suffix == ".parquet":
        return _parquet_rows(path)
    elif path.name.endswith(SUFFIXES):
        return _json_rows(path)
    raise UserError(
        "The format of the table is not known.",
        where=str(path),
        fix=f"Give a file {', '.join(SUFFIXES)}, a Kaldi folder (wav.scp), a folder of Parquet "
        "files, or one split of a data set that `datasets` saved to disk.",
        code="file-malformed",
    )


def _delimited_rows(path: Path, delimiter: str) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            twice = [name for name in header if header.count(name) > 1]
            if twice or not all(header):
                raise _malformed(
                    f"The column {twice[0]!r} is there twice."
                    if twice
                    else "A column has no name.",
                    f"{path}, line 1",
                )
            for fields in reader:
                if not fields:
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(fields) != len(header):
                    raise _malformed(
                        f"The line has {len(fields)} fields, the header {len(header)}.", where
                    )
                yield Row(dict(zip(header, map(str.strip, fields), strict=True)), where)
        except (csv.Error, UnicodeDecodeError) as error:
            raise _malformed(f"The file cannot be read: {error}.", str(path)) from error


def _json_rows(path: Path) -> Iterator[Row]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise _malformed("The line is not an object.", f"{path}, line {number}")
                is_cut = {"recording", "supervisions"} <= entry.keys()
                where = f"{path}, line {number}"
                yield Row(_cut_values(entry, where) if is_cut else entry, where)
        except (ValueError, OSError, EOFError) as error:
            raise _malformed(
                f"The file cannot be read: {error}.", f"{path}, line {number + 1}"
            ) from error


def _cut_values(cut: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The columns of a cut of lhotse; `custom` values and those of its supervision are columns."""
    (source, *others) = cut["recording"].get("sources") or [{}]
    supervisions = cut["supervisions"]
    if source.get("type") != "file" or others or len(supervisions) > 1:
        raise UserError(
            f"The cut {cut.get('id')} has {len(supervisions)} supervisions, and its audio is of "
            f"type {source.get('type')!r}.",
            where=where,
            fix="Cuts need one audio file, and at most one supervision (`trim_to_supervisions`).",
            code="not-supported",
        )
    values = {
        "id": cut["id"],
        "path": source["source"],
        "start": cut.get("start"),
        "duration": cut.get("duration"),
        **(cut.get("custom") or {}),
    }
    for supervision in supervisions:
        kept = {key: supervision.get(key) for key in ("text", "speaker", "language", "gender")}
        values |= {**kept, **(supervision.get("custom") or {})}
    return values


def _kaldi_rows(folder: Path, names: set[str]) -> Iterator[Row]:
    def table(name: str) -> dict[str, tuple[str, int]]:
        if name not in names:
            return {}
        lines = ((line.strip().partition(" "), n) for n, line in read_lines(folder / name))
        return {key: (value.strip(), number) for (key, _, value), number in lines}

    audio = table("wav.scp")
    segments = table("segments")
    columns = {
        {"text": "text", "utt2spk": "speaker"}.get(name, name.removeprefix("utt2")): table(name)
        for name in sorted(names)
        if name in ("text", "utt2spk") or (name.startswith("utt2") and name != "utt2dur")
    }
    list_name = "segments" if segments else "wav.scp"
    for key, (value, number) in (segments or audio).items():
        where = f"{folder / list_name}, line {number}"
        recording, *times = value.split() if segments else [key]
        if recording not in audio or len(times) not in (0, 2):
            raise _malformed(
                f"The segment {key} is not `<utterance> <recording> <start> <end>` of a recording "
                "of wav.scp.",
                where,
            )
        values: dict[str, Any] = {"id": key, "path": audio[recording][0]}
        if times:
            start, end = (seconds(time, where) for time in times)
            values |= {"start": start, "duration": end - start}
        values |= {column: found[key][0] for column, found in columns.items() if key in found}
        yield Row(values, where)


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        classes = _class_names(file.schema_arrow)
        number = 0
        for batch in file.iter_batches(batch_size=256):
            for values in batch.to_pylist():
                number += 1
                yield Row(_with_names(values, classes), f"{path}, row {number}")
    except (pa.ArrowInvalid, OSError) as error:
        raise _malformed(f"The file cannot be read: {error}.", str(path)) from error


def _saved_rows(folder: Path) -> Iterator[Row]:
    """The examples of a split that the package `datasets` has written by `save_to_disk`."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for entry in state["_data_files"]:
            path = folder / entry["filename"]
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
                classes = _class_names(reader.schema)
                number = 0
                for batch in reader:
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(_with_names(values, classes), f"{path}, row {number}")
    except (pa.ArrowInvalid, OSError, ValueError, KeyError) as error:
        raise _malformed(f"The data set cannot be read: {error}.", str(folder)) from error


def _class_names(schema: pa.Schema) -> dict[str, Sequence[str]]:
    """The names of the classes of each column of Hugging Face's type `ClassLabel`."""
    stored = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(stored)["info"]["features"] if stored else {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def _with_names(values: Mapping[str, Any], classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {
        key: classes[key][value] if key in classes and isinstance(value, int) else value
        for key, value in values.items()
    }


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


def audio_path(row: Row, table: Path) -> Path:
    """The audio file of a row; the bytes of an `audio` column are written below the cache.

    Raises:
        UserError: the row has neither a path nor bytes.
    """
    folder = table if table.is_dir() else table.parent
    audio = row.values.get("audio")
    content = audio.get("bytes") if isinstance(audio, Mapping) else None
    named = audio.get("path") if isinstance(audio, Mapping) else audio
    if content:
        suffix = PurePosixPath(named or "").suffix or ".wav"
        digest = hashlib.sha256(content).hexdigest()
        stored = default_cache_dir() / "audio" / digest[:2] / f"{digest}{suffix}"
        if not stored.is_file():
            stored.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(stored) as partial:
                partial.write_bytes(content)
        return stored
    path = row.values.get("path") or named
    if not path:
        raise _malformed("The row has no audio: neither `path` nor `audio`.", row.source)
    return absolute(folder / Path(str(path)).expanduser())


def seconds(value: Any, where: str) -> float:
    """A time in seconds.

    Raises:
        UserError: it is not a number from 0.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(
            f"{value!r} is not a time in seconds.",
            where=where,
            fix="Write a number from 0.",
            code="corpus-malformed",
        )
    return number


def _malformed(what: str, where: str) -> UserError:
    return UserError(what, where=where, code="file-malformed")
