"""Labels of frames in fairseq's files, the targets of HuBERT's masked prediction.

    train.tsv        the folder of the audio, then `relative/path.flac<TAB>samples` for each file
    train.km         the classes of the frames of each of these files, separated by blanks
    dict.km.txt      `class count` for each class

Samples count at 16 kHz. Frames have a constant rate: 50 labels per second from HuBERT's hidden
states, 100 from MFCC. A relative folder in the first line is relative to the folder of the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import soundfile

from s3prl_mtl.data.archives import open_file
from s3prl_mtl.data.audio import SAMPLE_RATE, libsndfile_reason
from s3prl_mtl.data.folders import note_read, read_lines
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import replace_text

LABEL_RATES = (100.0, 50.0, 25.0)
"""Rates that are recognised by the counts of labels and samples: MFCC, HuBERT, HuBERT at 25 Hz."""

TOLERANCE_SECONDS = 0.1
"""Between the durations of labels and of audio: the last windows may be incomplete. fairseq warns
beyond this."""

AudioFiles = list[tuple[str, int]]
"""Path relative to the folder, number of samples at 16 kHz."""


@dataclass(frozen=True)
class UnitLabels:
    """The audio files of a split and the classes of their frames.

    Args:
        root: the folder of the audio.
        files: path relative to it, and number of samples at 16 kHz, of each file.
        labels: the classes of the frames of each file, int32 (frames,).
        label_rate: labels per second.
    """

    root: Path
    files: AudioFiles
    labels: list[np.ndarray]
    label_rate: float


def read_unit_labels(
    tsv: str | os.PathLike[str],
    km: str | os.PathLike[str],
    *,
    label_rate: float | None = None,
    classes: Sequence[str] | None = None,
) -> UnitLabels:
    """Read a pair of files, and check that they belong together. The audio is not opened.

    Args:
        tsv: the audio files.
        km: the labels.
        label_rate: labels per second; None: the one of `LABEL_RATES` that fits the counts.
        classes: of the dictionary; None: labels are any numbers from 0.

    Raises:
        UserError: a file is missing or malformed, the number of lines differs, the number of labels
            of a file does not fit its duration, or a class is not in the dictionary.
    """
    tsv, km = Path(tsv), Path(km)
    root, files = read_tsv(tsv)
    labels = read_km(km)
    if len(files) != len(labels):
        raise _mismatch(
            f"{tsv.name} lists {len(files)} audio files, {km.name} has {len(labels)} lines of "
            "labels.",
            f"{km}, line {min(len(files), len(labels)) + 1}",
        )
    counts = np.array([len(line) for line in labels])
    samples = np.array([number for _, number in files])
    rate = label_rate if label_rate is not None else _guess_rate(counts, samples, km)
    difference = np.abs(counts / rate - samples / SAMPLE_RATE)
    if (difference > TOLERANCE_SECONDS).any():
        line = int(np.argmax(difference > TOLERANCE_SECONDS))
        name, number = files[line]
        raise _mismatch(
            f"{int((difference > TOLERANCE_SECONDS).sum())} of {len(files)} files have another "
            f"duration than their labels. The first one, {name}, has {number / SAMPLE_RATE:.2f} s "
            f"of audio, and {counts[line]} labels at {rate:g} per second.",
            f"{km}, line {line + 1}; {tsv}, line {line + 2}",
        )
    if classes is not None:
        _check_classes(labels, classes, km)
    return UnitLabels(root, files, labels, rate)


def _check_classes(labels: Sequence[np.ndarray], classes: Sequence[str], km: Path) -> None:
    known = [int(name) for name in classes if name.isdecimal()]
    # One more, for labels above the largest class.
    is_known = np.zeros(max(known, default=0) + 2, dtype=bool)
    is_known[known] = True
    for line, found in enumerate(labels, 1):
        unknown = found[~is_known[np.minimum(found, len(is_known) - 1)]]
        if len(unknown):
            raise UserError(
                f"The class {unknown[0]} is not one of the {len(classes)} classes of the "
                "dictionary.",
                where=f"{km}, line {line}",
                fix="Give the dictionary that was written with these labels.",
                code="label-unknown",
            )


def _guess_rate(counts: np.ndarray, samples: np.ndarray, km: Path) -> float:
    """The label rate that fits the total number of labels."""
    found = counts.sum() / (samples.sum() / SAMPLE_RATE)
    # The frames that a file lacks at its end.
    missing = TOLERANCE_SECONDS * len(counts) / (samples.sum() / SAMPLE_RATE)
    best = min(LABEL_RATES, key=lambda rate: abs(found / rate - 1))
    if abs(found / best - 1) > missing:
        raise _mismatch(
            f"There are {found:.1f} labels per second of audio; the known rates are "
            f"{', '.join(f'{rate:g}' for rate in LABEL_RATES)}.",
            str(km),
            "Give the labels of this audio, or set the label rate.",
        )
    return best


def _mismatch(what: str, where: str, fix: str = "Give the labels of this audio.") -> UserError:
    return UserError(what, where=where, fix=fix, code="corpus-inconsistent")


def read_tsv(path: str | os.PathLike[str]) -> tuple[Path, AudioFiles]:
    """The folder of the audio, and path and number of samples (at 16 kHz) of each file.

    Raises:
        UserError: the file is missing, malformed, or lists no audio.
    """
    path = Path(path)
    lines = read_lines(path)
    if len(lines) < 2:
        raise UserError(
            "The file lists no audio.",
            where=str(path),
            fix="Expected: a line with the folder, then `path<TAB>samples` for each file.",
            code="corpus-empty",
        )
    root = Path(os.path.abspath(path.parent / os.path.expanduser(lines[0][1].strip())))
    files = []
    for position, (number, line) in enumerate(lines[1:], 2):
        name, tab, samples = line.rpartition("\t")
        # The lines of labels have no numbers: an empty line would shift them.
        if not tab or not name or not samples.strip().isdecimal() or number != position:
            raise UserError(
                f"The line {line[:100]!r} is not `path<TAB>samples`"
                + (", or it follows an empty line." if number != position else "."),
                where=f"{path}, line {number}",
                fix="Write the path relative to the folder in the first line, a tab, and the "
                "number of samples at 16 kHz.",
                code="corpus-malformed",
            )
        files.append((name, int(samples)))
    return root, files


def write_tsv(path: Path, root: Path, files: Iterable[tuple[str, int]]) -> None:
    """Write what :func:`read_tsv` reads, atomically."""
    replace_text(path, "\n".join([str(root), *(f"{name}\t{size}" for name, size in files)]) + "\n")


def read_km(path: str | os.PathLike[str]) -> list[np.ndarray]:
    """The labels of each line, int32 (frames,).

    Raises:
        UserError: the file is missing, or a line has something else than whole numbers from 0.
    """
    path = Path(path)
    note_read(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"The labels cannot be read: {error.strerror}.",
            where=str(path),
            code="file-unreadable" if path.exists() else "file-missing",
        ) from error
    labels = []
    for number, line in enumerate(lines, 1):
        digits = line.replace(b" ", b"").replace(b"\t", b"")
        if not digits.isdigit():
            raise UserError(
                "The line has no labels."
                if not digits
                else "The line has entries that are not labels.",
                where=f"{path}, line {number}",
                fix="Write the numbers of the classes, separated by blanks, one line a file.",
                code="corpus-malformed",
            )
        labels.append(np.fromstring(line.decode(), dtype=np.int32, sep=" "))
    return labels


def write_km(file: TextIO, labels: Sequence[int] | np.ndarray) -> None:
    """Append the line of a file to labels that are open for writing."""
    file.write(" ".join(map(str, np.asarray(labels).tolist())) + "\n")


def read_dictionary(path: str | os.PathLike[str]) -> list[str]:
    """The classes of a `dict.km.txt`, in their order.

    Raises:
        UserError: the file is missing or malformed, or has a class twice.
    """
    path = Path(path)
    classes: dict[str, int] = {}
    for number, line in read_lines(path):
        words = line.split()
        if len(words) != 2 or not words[1].isdecimal():
            raise UserError(
                f"The line {line[:100]!r} is not `class count`.",
                where=f"{path}, line {number}",
                fix="Give the dictionary that was written with the labels.",
                code="corpus-malformed",
            )
        if words[0] in classes:
            raise UserError(
                f"The class {words[0]!r} is in line {classes[words[0]]} already.",
                where=f"{path}, line {number}",
                fix="Give the dictionary that was written with the labels.",
                code="corpus-malformed",
            )
        classes[words[0]] = number
    return list(classes)


def write_dictionary(path: Path, counts: Sequence[int]) -> None:
    """Write the classes 0 to K - 1 with their counts, atomically."""
    replace_text(path, "".join(f"{name} {count}\n" for name, count in enumerate(counts)))


def samples_at_16k(path: Path) -> int:
    """The number of samples that an audio file has at 16 kHz, by its header.

    Raises:
        UserError: the file is missing or not audio.
    """
    try:
        with soundfile.SoundFile(open_file(path)) as file:
            # As resampling rounds.
            return -(-file.frames * SAMPLE_RATE // file.samplerate)
    except soundfile.LibsndfileError as error:
        reason = libsndfile_reason(error, path)
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error)
    raise UserError(
        f"The audio file cannot be read: {reason.rstrip('.')}.",
        where=str(path),
        fix="Replace the file, or remove it from the list and its line from the labels.",
        code="audio-unreadable" if path.exists() else "file-missing",
    )


def check_audio(tsv: Path, root: Path, files: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Compare the audio with the list while iterating over its paths.

    Args:
        tsv: the list, for errors.
        root: the folder of the audio.
        files: path and number of samples of each file.

    Yields:
        each path, once its file is checked.

    Raises:
        UserError: a file is missing, not audio, or of another length than the list says.
    """
    for line, (name, expected) in enumerate(files, 2):
        found = samples_at_16k(root / name)
        if abs(found - expected) > TOLERANCE_SECONDS * SAMPLE_RATE:
            raise _mismatch(
                f"{name} has {found} samples at 16 kHz; the list says {expected}.",
                f"{tsv}, line {line}",
                "Give the list of this audio, or make it again with `s3prl-mtl cluster`.",
            )
        yield name
