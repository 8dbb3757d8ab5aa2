"""The rows of each format of tables (:mod:`.tables`)."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import os
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from s3prl_mtl.data.folders import absolute, list_files, note_read, read_lines
from s3prl_mtl.errors import UserError, error_summary, require_packages
from s3prl_mtl.fileio.atomic import atomic_path
from s3prl_mtl.fileio.cache import default_cache_dir

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".parquet")

HUB = "hf:"
"""Begins the name of a split of a Hugging Face data set that `datasets` fetches."""

_HUB_SPLIT = re.compile(HUB + r"(?P<name>.+?)(?:@(?P<config>[^:]+))?:(?P<split>[^:\[]+(?:\[.*\])?)")
"""`hf:google/fleurs@de_de:train[:10%]`."""

_DAMAGED = (OSError, EOFError, zlib.error)
"""Errors of reading files, packed ones among them."""

_SPLIT_WORD = re.compile(r"(train|dev|valid|validation|eval|test)(?![a-z])")
"""Begins the names of files in a folder that has several splits of a data set."""


@dataclass(frozen=True)
class Row:
    """An utterance of a table.

    Args:
        values: by column; missing values are left out.
        source: the file and line or row, for messages.
    """

    values: Mapping[str, Any]
    source: str

    def text(self, column: str) -> str:
        """The value of a column as text: `1`, `"1"` and `1.0` are the same.

        Raises:
            UserError: it is a list or an object.
        """
        return as_text(self.values[column], column, self.source)


def as_text(value: Any, column: str, where: str) -> str:
    """A text or number of a column as text.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(
        f"The value of {column!r} is neither a text nor a number: {value!r}.",
        where=where,
        code="corpus-malformed",
    )


def texts_of(row: Row, column: str) -> list[str]:
    """The texts of a list, or of a text separated by blanks.

    Raises:
        UserError: the value is neither, or the list has other values than texts and numbers.
    """
    value = row.values[column]
    if isinstance(value, list | tuple):
        return [as_text(entry, column, row.source) for entry in value]
    return row.text(column).split()


def table_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a table; a data set `hf:...` unchanged."""
    return Path(path) if os.fspath(path).startswith(HUB) else absolute(path)


def files_of(path: Path) -> list[Path]:
    """The file or folder of a table, or the files of a pattern such as `data/train-*.parquet`.

    A data set `hf:...` counts as a file.
    """
    if str(path).startswith(HUB):
        return [path]
    if "*" not in path.name or path.exists():
        note_read(path)
        return [path] if path.exists() else []
    note_read(path.parent)
    return sorted(path.parent.glob(path.name))


def rows_of_file(path: Path) -> Iterator[Row]:
    """The rows of a file or folder.

    Raises:
        UserError: it is of an unknown format, or malformed.
    """
    if str(path).startswith(HUB):
        return _hub_rows(path)
    if path.is_dir():
        names = set(list_files(path))
        if "wav.scp" in names:
            return _kaldi_rows(path, names)
        if "state.json" in names:
            return _saved_rows(path)
        if any(name.startswith("cuts.") for name in names):
            return _shar_rows(path)
        files = sorted(name for name in names if name.endswith(".parquet"))
        if files:
            _refuse_several_splits(path, files)
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
        "files, a Shar folder, or one split of a data set that `datasets` saved to disk.",
        code="file-malformed",
    )


# ------------------------------------------------------------------------------- text


def _delimited_rows(path: Path, delimiter: str) -> Iterator[Row]:
    # The default limit is 131 072 characters; the segments of a long recording have more.
    csv.field_size_limit(sys.maxsize)
    with _readable(path), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            twice = [name for name in header if header.count(name) > 1]
            if twice or not all(header):
                raise malformed(
                    f"The column {twice[0]!r} occurs twice." if twice else "A column has no name.",
                    f"{path}, line 1",
                )
            if len(header) == 1 and (others := {",", ";", "\t"} & set(header[0])):
                raise malformed(
                    f"The line has one column, {header[0]!r}.",
                    f"{path}, line 1",
                    f"Fields of a {path.suffix} file are separated by {_SEPARATORS[delimiter]}, "
                    f"not by {_SEPARATORS[min(others)]}.",
                )
            last = reader.line_num
            for fields in reader:
                first, last = last + 1, reader.line_num
                if not fields:
                    continue
                where = f"{path}, line {first}"
                if len(fields) != len(header):
                    raise malformed(
                        f"The line has {len(fields)} fields, the header {len(header)}.", where
                    )
                if delimiter == "\t" and last > first:
                    raise malformed(
                        f"A quotation mark opens a field that ends in line {last}.", where, _QUOTES
                    )
                yield Row(dict(zip(header, map(str.strip, fields), strict=True)), where)
        except csv.Error as error:
            raise malformed(
                f"The line cannot be read: {error}.", f"{path}, line {reader.line_num}", _QUOTES
            ) from error


_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}

_QUOTES = (
    'A field that begins with a quotation mark ends with one, and has those within doubled: """Yes"'
    '", he said."'
)


def _json_rows(path: Path) -> Iterator[Row]:
    opened = gzip.open if path.suffix == ".gz" else open
    with _readable(path), opened(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise malformed(f"The line is not JSON in UTF-8: {error}.", where) from error
            if not isinstance(entry, dict):
                raise malformed("The line is not an object.", where)
            is_cut = {"recording", "supervisions"} <= entry.keys()
            yield Row(_cut_values(entry, where) if is_cut else entry, where)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the errors of reading a text file into those of the user."""
    try:
        yield
    except UnicodeDecodeError as error:
        lines = enumerate(path.read_bytes().split(b"\n"), 1)
        number = next((n for n, line in lines if not _is_utf8(line)), 1)
        raise malformed(
            "The line is not UTF-8 text.",
            f"{path}, line {number}",
            "Convert the file to UTF-8, for example with `iconv -f LATIN1 -t UTF-8`, or -f UTF-16.",
        ) from error
    except _DAMAGED as error:
        raise malformed(f"The file cannot be read: {error}.", str(path)) from error


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


# ----------------------------------------------------------------------------- lhotse


def _cut_values(cut: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The columns of a cut of lhotse; `custom` values and those of its supervision are columns."""
    try:
        (source, *others) = cut["recording"].get("sources") or [{}]
        _check_cut(cut, where, source, others)
        return {
            "id": cut["id"],
            "path": source["source"],
            "start": cut.get("start"),
            "duration": cut.get("duration"),
            **_described(cut),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise malformed(f"The line is not a cut of lhotse: {error!r}.", where) from error


def _described(cut: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a cut beside its audio."""
    values = dict(cut.get("custom") or {})
    for supervision in cut["supervisions"]:
        kept = {key: supervision.get(key) for key in ("text", "speaker", "language", "gender")}
        values |= {**kept, **(supervision.get("custom") or {})}
    return values


def _check_cut(
    cut: Mapping[str, Any], where: str, source: Mapping[str, Any], others: Sequence[Any]
) -> None:
    """Refuse cuts whose audio is not a segment of a file with all its channels, as it is."""
    channels = cut.get("channel", 0)
    channels = channels if isinstance(channels, list) else [channels]
    reason, fix = "", "Save the audio of the cuts (`CutSet.save_audios`)."
    if source.get("type") not in ("file", "shar") or others:
        reason = f"has {1 + len(others)} sources of audio, the first of type {source.get('type')!r}"
    elif sorted(channels) != sorted(source.get("channels") or channels):
        reason = f"is of the channels {channels} of {source['channels']}"
    elif cut["recording"].get("transforms"):
        reason = "changes its recording (`transforms`)"
    elif len(cut["supervisions"]) > 1:
        reason = f"has {len(cut['supervisions'])} supervisions"
        fix = "Cut it by them (`CutSet.trim_to_supervisions`)."
    if reason:
        raise UserError(
            f"The cut {cut.get('id')} {reason}.", where=where, fix=fix, code="not-supported"
        )


def _shar_rows(folder: Path) -> Iterator[Row]:
    """The cuts of a folder of lhotse Shar, `cuts.*.jsonl.gz` beside `recording.*.tar`."""
    from lhotse.shar.readers.lazy import LazySharIterator  # slow to import

    fields = {
        field: sorted(str(path) for path in folder.glob(f"{field}.*") if path.name[0] != ".")
        for field in ("cuts", "recording")
    }
    if len(fields["cuts"]) != len(fields["recording"]):
        raise malformed(
            f"The Shar folder has {len(fields['cuts'])} files `cuts.*`, and "
            f"{len(fields['recording'])} files `recording.*`.",
            str(folder),
        )
    for file in (*fields["cuts"], *fields["recording"]):
        note_read(file)
    number = 0
    try:
        for number, cut in enumerate(LazySharIterator(fields), 1):
            where = f"{folder}, cut {number}"
            (audio,) = cut.recording.sources
            values = cut.to_dict()
            values["recording"] = {"sources": [{"type": "shar", "channels": audio.channels}]}
            _check_cut(values, where, values["recording"]["sources"][0], ())
            described = {k: v for k, v in _described(values).items() if k not in _SHAR_CUSTOM}
            stored = _stored(audio.source, audio.format)
            times = {"start": cut.start, "duration": cut.duration}
            yield Row({"id": cut.id, "path": str(stored), **times, **described}, where)
    except (*_DAMAGED, tarfile.TarError, ValueError, AssertionError, KeyError) as error:
        raise malformed(
            f"The Shar folder cannot be read: {error!r}.", f"{folder}, cut {number + 1}"
        ) from error


_SHAR_CUSTOM = ("shard_origin", "shar_epoch", "dataloading_info")
"""Custom values of a cut that lhotse adds as it reads one."""


# ------------------------------------------------------------------------------ Kaldi


def _kaldi_rows(folder: Path, names: set[str]) -> Iterator[Row]:
    def table(name: str) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for number, line in read_lines(folder / name) if name in names else ():
            key, *rest = line.split(None, 1)
            if key in found:
                raise UserError(
                    f"{key!r} occurs twice.",
                    where=f"{folder / name}, lines {found[key][1]} and {number}",
                    code="corpus-duplicates",
                )
            found[key] = "".join(rest).strip(), number
        return found

    audio = table("wav.scp")
    for value, number in audio.values():
        if not value or value.startswith("|") or value.endswith("|"):
            raise UserError(
                f"{value!r} is a command." if value else "The line names no file.",
                where=f"{folder / 'wav.scp'}, line {number}",
                fix="Convert the audio to files, and name these in wav.scp.",
                code="not-supported" if value else "file-malformed",
            )
    segments = table("segments")
    columns = {
        {"text": "text", "utt2spk": "speaker"}.get(name, name.removeprefix("utt2")): table(name)
        for name in sorted(names)
        if name in ("text", "utt2spk") or (name.startswith("utt2") and name != "utt2dur")
    }
    list_name = "segments" if segments else "wav.scp"
    for key, (value, number) in (segments or audio).items():
        where = f"{folder / list_name}, line {number}"
        recording, *times = (value.split() or [""]) if segments else [key]
        if recording not in audio or len(times) != (2 if segments else 0):
            raise malformed(
                f"The segment {key} is not `<utterance> <recording> <start> <end>` of a recording "
                "of wav.scp.",
                where,
            )
        values: dict[str, Any] = {"id": key, "path": audio[recording][0]}
        if times:
            start, end = times
            values["start"] = seconds(start, where)
            if end != "-1":  # to the end of the file
                values["duration"] = seconds(end, where) - values["start"]
        values |= {column: found[key][0] for column, found in columns.items() if key in found}
        yield Row(values, where)


# ----------------------------------------------------------------- Parquet, Hugging Face


def _refuse_several_splits(folder: Path, names: Sequence[str]) -> None:
    found = (_SPLIT_WORD.match(name) for name in names)
    splits = sorted({match[1] for match in found if match})
    if len(splits) > 1:
        raise UserError(
            f"The folder has files of several splits: {', '.join(splits)}.",
            where=str(folder),
            fix=f"Name the files of one split: {folder / splits[-1]}-*.parquet.",
            code="file-malformed",
        )


def _parquet_rows(path: Path) -> Iterator[Row]:
    note_read(path)
    with _arrow_readable(path):
        file = pyarrow.parquet.ParquetFile(path)
        # Rows may hold the bytes of audio: a few at a time.
        yield from _arrow_rows(file.iter_batches(batch_size=64), file.schema_arrow, path)


def _saved_rows(folder: Path) -> Iterator[Row]:
    """The examples of a split that the package `datasets` has written by `save_to_disk`."""
    with _arrow_readable(folder):
        note_read(folder / "state.json")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise UserError(
                "The data set has an indices mapping, as after `select`, `filter` or `shuffle`.",
                where=str(folder),
                fix="Save `dataset.flatten_indices()`.",
                code="not-supported",
            )
        for entry in state["_data_files"]:
            path = folder / entry["filename"]
            note_read(path)
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
                parts = (
                    batch.slice(start, 64)
                    for batch in reader
                    for start in range(0, batch.num_rows, 64)
                )
                yield from _arrow_rows(parts, reader.schema, path)


def _hub_rows(path: Path) -> Iterator[Row]:
    """The examples of a split that the package `datasets` fetches or has fetched.

    Data sets of Parquet and such files; code of a data set is not executed.
    """
    named = _HUB_SPLIT.fullmatch(str(path))
    if named is None:
        raise UserError(
            f"{str(path)!r} does not name a split of a data set.",
            where=str(path),
            fix="Write hf:USER/NAME:SPLIT, or hf:USER/NAME@CONFIG:SPLIT.",
            code="invalid-value",
        )
    require_packages(["datasets"], str(path), "hf")
    datasets = import_module("datasets")
    try:
        split = datasets.load_dataset(named["name"], named["config"], split=named["split"])
    except Exception as error:  # of several libraries
        raise UserError(
            f"The data set cannot be loaded: {error_summary(error)}.",
            where=str(path),
            fix="Check its name, configuration and split, and the network. Data sets with a script "
            "of their own are not supported: use their conversion to Parquet.",
            code="download-failed",
        ) from error
    batches = (
        batch
        for table in split.with_format("arrow").iter(batch_size=64)
        for batch in table.to_batches()
    )
    with _arrow_readable(path):
        yield from _arrow_rows(batches, split.features.arrow_schema, path)


@contextmanager
def _arrow_readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise malformed(f"The table cannot be read: {reason}.", str(path)) from error


def _arrow_rows(batches: Iterator[pa.RecordBatch], schema: pa.Schema, path: Path) -> Iterator[Row]:
    classes = _class_names(schema)
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            where = f"{path}, row {number}"
            for column, names in classes.items():
                values[column] = _named(values.get(column), names, where)
            audio = values.get("audio")
            if isinstance(audio, dict) and audio.get("bytes"):
                name = PurePosixPath(audio.get("path") or "")
                if values.get("id") is None:
                    values["id"] = name.stem or f"{path.stem}-{number}"
                # A column `path` may be that of the file from which the bytes were taken.
                values["path"] = str(_stored(audio["bytes"], name.suffix))
                del values["audio"]
            yield Row(values, where)


def _class_names(schema: pa.Schema) -> dict[str, Sequence[str]]:
    """The class names of columns of Hugging Face's type `ClassLabel`, or of lists of it."""
    stored = (schema.metadata or {}).get(b"huggingface")
    info = json.loads(stored).get("info") if stored else None
    names = {}
    for column, feature in ((info or {}).get("features") or {}).items():
        if isinstance(feature, list):
            (feature,) = feature
        elif "feature" in feature:
            feature = feature["feature"]
        if feature.get("_type") == "ClassLabel" and feature.get("names"):
            names[column] = feature["names"]
    return names


def _named(value: Any, names: Sequence[str], where: str) -> Any:
    """The name of a class by its number; -1 is none."""
    if isinstance(value, list):
        return [_named(entry, names, where) for entry in value]
    if not isinstance(value, int) or value == -1:
        return None if value == -1 else value
    if not 0 <= value < len(names):
        raise malformed(f"The data set has no class {value}: it has {len(names)}.", where)
    return names[value]


# ----------------------------------------------------------------------------- shared


def _stored(content: bytes, suffix: str) -> Path:
    """The file below the cache with the bytes of audio, written if it does not exist."""
    suffix = f".{suffix.lstrip('.')}" if suffix else ".wav"
    digest = hashlib.sha256(content).hexdigest()
    stored = default_cache_dir() / "audio" / digest[:2] / f"{digest}{suffix}"
    if not stored.is_file():
        try:
            stored.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(stored) as partial:
                partial.write_bytes(content)
        except OSError as error:
            raise UserError(
                f"The audio of the table cannot be written: {error.strerror or error}.",
                where=str(stored.parent),
                fix="Free space there, or set another folder with $S3PRL_MTL_CACHE.",
                code="file-unwritable",
            ) from error
    return stored


def seconds(value: Any, where: str) -> float:
    """A time in seconds.

    Raises:
        UserError: it is not a number from 0.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
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


def malformed(what: str, where: str, fix: str | None = None) -> UserError:
    """An error of a file that does not have its format."""
    return UserError(what, where=where, fix=fix, code="file-malformed")
