"""Who speaks when, as NIST's rich transcription time marks (RTTM)."""

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
def rttm_file(path: Path) -> Iterator[TextIO]:
    """A file to write to, which takes the place of `path` once all is written.

    Raises:
        UserError: it cannot be written, or is there and is no RTTM file by its name.
    """
    if path.exists() and (path.suffix.lower() != SUFFIX or not path.is_file()):
        raise UserError(
            f"{path} is there already, and is no {SUFFIX} file: it would be lost.",
            where=f"--rttm {path}",
            fix=f"--rttm takes one file to write to, before the audio: --rttm who{SUFFIX}.",
        )
    # A link stays a link.
    target = path.resolve()
    with atomic_path(target) as partial:
        try:
            file = partial.open("w", encoding="utf-8")
        except OSError as cause:
            raise UserError(
                f"The file cannot be written: {cause.strerror}.",
                where=f"--rttm {path}",
                code="file-unwritable",
            ) from cause
        with file:
            yield file


def recording_names(files: Sequence[Path]) -> dict[str, str]:
    """What RTTM calls each file, without white space, and no two of them the same.

    It is the file's stem, or its path where two share a stem; a number tells apart what still is
    the same. A file that is given twice has one name.
    """
    distinct = {os.path.abspath(file): file for file in reversed(files)}
    stems = Counter(_joined(file.stem) for file in distinct.values())
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(map(os.path.abspath, files)):
        stem = _joined(distinct[path].stem)
        name = plain = stem if stems[stem] == 1 else _joined(str(distinct[path]))
        number = 1
        while name in taken:
            number += 1
            name = f"{plain}_{number}"
        names[path] = name
        taken.add(name)
    return {str(file): names[os.path.abspath(file)] for file in files}


def write_rttm(file: TextIO, recording: str, answer: dict[str, Any], task: str) -> None:
    """The segments of a recording as lines.

    Args:
        file: to write to.
        recording: its name.
        answer: of the head; `segments` are mappings with `start`, `end` (seconds) and `speaker`.
        task: that the head is of, for errors.

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
            f"{task} makes no segments to write.",
            where="--rttm",
            fix="Its answers have to have `segments`: a list of `start`, `end`, `speaker`.",
        ) from None
    for start, end, speaker in segments:
        file.write(
            f"SPEAKER {recording} 1 {start:.3f} {end - start:.3f} <NA> <NA> "
            f"speaker{_joined(speaker)} <NA> <NA>\n"
        )


def _joined(name: str) -> str:
    """Its fields are separated by white space."""
    return "_".join(name.split()) or "_"
