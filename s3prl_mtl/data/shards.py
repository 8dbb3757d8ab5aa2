"""Write the audio of a folder of corpora into tar archives (:mod:`.archives`)."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import soundfile
from lhotse import Recording
from lhotse.cut import MonoCut, MultiCut
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers import TarWriter
from lhotse.shar.writers.cut import JsonlShardWriter

from s3prl_mtl.data.archives import ARCHIVE, FOLDER, INDEX, SCHEMA, forget_archives
from s3prl_mtl.data.audio import describe
from s3prl_mtl.data.folders import is_audio
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import atomic_path

logger = logging.getLogger(__name__)

CUTS = "cuts.%06d.jsonl.gz"


def write_archives(
    source: Path,
    target: Path,
    *,
    shard_size: int = 1000,
    url: str | None = None,
    progress: Callable[[int], object] = lambda files: None,
) -> tuple[int, int]:
    """Copy a folder of corpora, with its audio in archives.

    Links are followed, hidden files are left out. Audio that libsndfile cannot open is copied like
    other files.

    Args:
        source: the folder.
        target: a new or an empty folder.
        shard_size: files of an archive.
        url: address of a folder of any file system of fsspec at which the archives will be read;
            default: where they are.
        progress: called with the number of files so far.

    Returns:
        the number of files in the archives, and of archives.

    Raises:
        UserError: `source` is not a folder, or `target` is in it or not empty, or an
            archive would have no files.
        OSError: a file cannot be read or written.
    """
    if shard_size < 1:
        raise UserError(
            f"An archive cannot have {shard_size} files.",
            where="--shard_size",
            fix="Set 1 or more.",
            code="invalid-value",
        )
    _check_folders(source, target)
    folder = target / FOLDER
    folder.mkdir(parents=True)
    names: list[str] = []
    with (
        TarWriter(str(folder / ARCHIVE), shard_size) as archives,
        JsonlShardWriter(str(folder / CUTS), shard_size) as cuts,
    ):
        for count, name in enumerate(_walk(source, target), 1):
            recording = _recording(source / name) if is_audio(name) else None
            if recording is None:
                shutil.copyfile(source / name, target / name)
            else:
                stem = name.removesuffix(Path(name).suffix)
                placeholder = json.dumps(to_shar_placeholder(recording).to_dict())
                archives.write(name, io.BytesIO((source / name).read_bytes()))
                archives.write(f"{stem}.json", io.BytesIO(placeholder.encode()), count=False)
                cuts.write(_whole(stem, recording))
                names.append(name)
            progress(count)
        paths = archives.output_paths
    _write_index(target, names, paths, url)
    forget_archives()
    return len(names), len(paths)


def _check_folders(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise UserError(
            "The folder of corpora does not exist.",
            where=str(source),
            fix="Name the folder that `--data` names.",
            code="file-missing",
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            "The folder for the archives is not empty.",
            where=str(target),
            fix="Name a new folder, or empty this one.",
            code="file-exists",
        )
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(
            "The folder for the archives is in the folder of corpora.",
            where=str(target),
            fix="Name a folder elsewhere.",
            code="invalid-value",
        )


def _walk(source: Path, target: Path) -> Iterator[str]:
    """Paths of all files, relative to `source` with `/`; makes their folders in `target`."""

    def below(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        status = os.stat(source / folder)
        here = status.st_dev, status.st_ino
        if here in above:  # a link to a folder around it
            return
        (target / folder).mkdir(exist_ok=True)
        for entry in sorted(os.scandir(source / folder), key=lambda entry: entry.name):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from below(name, above | {here})
            elif entry.is_file():
                yield name

    return below("", frozenset())


def _recording(path: Path) -> Recording | None:
    """lhotse's description of an audio file; None if libsndfile cannot open it."""
    try:
        with soundfile.SoundFile(path) as file:
            return describe(path, file)
    except (soundfile.LibsndfileError, TypeError) as error:
        logger.warning("Copying %s unchanged: %s", path, error)
        return None


def _whole(name: str, recording: Recording) -> MonoCut | MultiCut:
    """A cut of all of a recording, for lhotse's readers."""
    is_mono = recording.num_channels == 1
    cut_type: type[MonoCut] | type[MultiCut] = MonoCut if is_mono else MultiCut
    return cut_type(
        id=name,
        start=0.0,
        duration=recording.duration,
        channel=0 if is_mono else list(recording.channel_ids),
        recording=to_shar_placeholder(recording),
    )


def _write_index(target: Path, names: list[str], archives: list[str], url: str | None) -> None:
    rows: list[dict[str, Any]] = []
    remaining = iter(names)
    for number, path in enumerate(archives):
        with tarfile.open(path) as archive:
            # Each file is followed by its description.
            for member in archive.getmembers()[::2]:
                place = {"archive": number, "offset": member.offset_data, "size": member.size}
                rows.append({"path": next(remaining), **place})
    rows.sort(key=lambda row: row["path"])
    schema = SCHEMA.with_metadata({"url": url.rstrip("/")} if url else None)
    # Last: without the index, the folder counts as incomplete.
    with (
        atomic_path(target / INDEX) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        writer.write(pa.RecordBatch.from_pylist(rows, schema=schema))
