"""Diarization as NIST's rich transcription time marks (RTTM)."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import atomic_path

SUFFIX = ".rttm"


@contextmanager
def marks_file(path: Path, suffix: str = SUFFIX) -> Iterator[TextIO]:
    """A file for writing that replaces `path` at the end of the block.

    Args:
        path: the file.
        suffix: of its format; without the dot the name of the flag, for errors.

    Raises:
        UserError: it cannot be written, or exists and has another suffix.
    """
    flag = f"--{suffix.removeprefix('.')}"
    if path.exists() and (path.suffix.lower() != suffix or not path.is_file()):
        raise UserError(
            f"{path} exists and is not named *{suffix}: it is not overwritten.",
            where=f"{flag} {path}",
            fix=f"{flag} takes one file to write to, before the audio: {flag} out{suffix}.",
            code="file-exists",
        )
    # A link stays a link.
    target = path.resolve()
    with atomic_path(target) as partial:
        try:
            # Names of files may be of any bytes.
            file = partial.open("w", encoding="utf-8", errors="surrogateescape")
        except OSError as cause:
            raise UserError(
                f"The file cannot be written: {cause.strerror}.",
                where=f"{flag} {path}",
                code="file-unwritable",
            ) from cause
        with file:
            yield file


def recording_names(files: Sequence[Path]) -> dict[str, str]:
    """A unique name without white space for each file.

    The stem of the file, or its path if two files share a stem; names that are still equal get a
    number. A file that is given twice has one name.
    """
    distinct = {os.path.abspath(file): file for file in reversed(files)}
    stems = Counter(joined(file.stem) for file in distinct.values())
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(map(os.path.abspath, files)):
        stem = joined(distinct[path].stem)
        name = plain = stem if stems[stem] == 1 else joined(str(distinct[path]))
        number = 1
        while name in taken:
            number += 1
            name = f"{plain}_{number}"
        names[path] = name
        taken.add(name)
    return {str(file): names[os.path.abspath(file)] for file in files}


def write_rttm(file: TextIO, recording: str, answer: dict[str, Any], task: str) -> None:
    """Write the segments of a recording as lines.

    Args:
        file: open for writing.
        recording: its name.
        answer: of a head; `segments` are mappings with `start`, `end` (seconds) and `speaker`.
        task: of the head, for errors.

    Raises:
        UserError: the answer has no segments, or they are of another form.
    """
    try:
        segments = [
            (float(segment["start"]), float(segment["end"]), str(segment["speaker"]))
            for segment in answer["segments"]
        ]
        if not all(math.isfinite(start) and start <= end for start, end, _ in segments):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"The answers of {task} have no segments to write.",
            where=f"--rttm, task {task}",
            fix="They need `segments`: a list of `start`, `end`, `speaker`.",
            code="not-supported",
        ) from None
    for start, end, speaker in segments:
        file.write(
            f"SPEAKER {recording} 1 {start:.3f} {end - start:.3f} <NA> <NA> "
            f"speaker{joined(speaker)} <NA> <NA>\n"
        )


def joined(name: str) -> str:
    """A name without white space, which separates the fields of RTTM and CTM."""
    return "_".join(name.split()) or "_"
