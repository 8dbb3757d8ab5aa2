"""Scan of a split: open every audio file once and find the usable ones."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from lhotse import Recording
from lhotse.cut import Cut, MonoCut, MultiCut
from rich.console import Console
from rich.progress import track
from torch import Tensor

from s3prl_mtl.data.archives import file_size, open_file
from s3prl_mtl.data.audio import (
    MINIMUM_SAMPLES,
    SAMPLE_RATE,
    UnreadableAudio,
    cut_short,
    describe,
    libsndfile_reason,
    load_waveform,
)
from s3prl_mtl.data.folders import AUDIO_SUFFIXES, UNDECODABLE_SUFFIXES
from s3prl_mtl.data.utterance import Utterance

logger = logging.getLogger(__name__)

_PROBED_FRAMES = 1024
_PROBED_PLACES = (0.25, 0.5, 1.0)
"""Places at which a file is read, as fractions of its length."""

MAXIMUM_OVER = 0.01
"""Largest fraction of samples above 1 in a file of floating-point samples."""
MAXIMUM_SATURATED = 0.5
"""Largest fraction of samples at full scale, such as of integers that were cut to [-1, 1]."""
MINIMUM_PEAK = 2.0**-15
"""Smallest peak: one step of 16-bit samples."""
MINIMUM_MEAN = 0.01
"""Smallest level of the mean of the channels, relative to that of the channels."""

# Tolerance for durations in metadata files, which are rounded.
_ROUNDING_SECONDS = 0.1


_CONTENTS = {
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the audio with `git lfs pull`",
    b"<!doctype": "it is a web page, such as of a failed download",
    b"<html": "it is a web page, such as of a failed download",
    b"<?xml": "it is an XML document, such as of a failed download",
    b"pk\x03\x04": "it is a zip archive; unpack it",
    b"\x1f\x8b": "it is packed by gzip; unpack it",
    b"nist_1a": "it is a SPHERE file that libsndfile cannot read; convert it with `sph2pipe`",
}
"""First bytes of files that are commonly found in place of audio."""


MISSING = "missing"
UNDECODABLE = "files cannot be read"
"""Parts of reasons, by which a remedy is chosen."""


@dataclass(frozen=True)
class Scan:
    """Result of a scan.

    Args:
        cuts: the usable utterances, in the order of the corpus.
        skipped: (path, reason) of utterances with a missing, unreadable or too short file.
        rejected: ids of utterances rejected by :meth:`Corpus.content_check`.
    """

    cuts: list[Cut]
    skipped: list[tuple[str, str]]
    rejected: list[str]


class _Unusable(Exception):
    """An unusable file, with the reason; internal to this module."""


def scan(
    utterances: Sequence[Utterance],
    accept: Callable[[Tensor], bool] | None,
    jobs: int | None,
    title: str,
) -> Scan:
    """Open the file of every utterance, in parallel, with a progress bar on a terminal.

    Reads the header and the end of each file, which detects most truncated files; decodes whole
    files only for `accept`. Threads suffice: libsndfile and numpy release the interpreter lock.

    Args:
        utterances: the utterances of a split.
        accept: predicate on waveforms (:meth:`Corpus.content_check`), or None.
        jobs: threads; default: the number of cores.
        title: title of the progress bar.
    """
    paths = list(dict.fromkeys(utterance.path for utterance in utterances))
    jobs = jobs or os.cpu_count() or 1
    with ThreadPoolExecutor(jobs) as pool:
        probed = _progress(pool.map(_probe_or_reason, paths), len(paths), title)
        recordings = dict(zip(paths, probed, strict=True))
        cuts: list[Cut] = []
        skipped: list[tuple[str, str]] = []
        for utterance in utterances:
            found = recordings[utterance.path]
            try:
                if isinstance(found, str):
                    raise _Unusable(found)
                cuts.append(_make_cut(utterance, found.recording, found.digest))
            except _Unusable as reason:
                source = f" (listed in {utterance.source})" if utterance.source else ""
                skipped.append((str(utterance.path), f"{reason}{source}"))
        if accept is None:
            return Scan(cuts, skipped, [])
        results = _progress(
            pool.map(lambda cut: _check(cut, accept), cuts), len(cuts), f"{title}, decoding"
        )
        accepted: list[Cut] = []
        rejected: list[str] = []
        for cut, result in zip(cuts, results, strict=True):
            if isinstance(result, str):
                skipped.append((str(cut.recording.sources[0].source), result))
            elif result:
                accepted.append(cut)
            else:
                rejected.append(cut.id)
        return Scan(accepted, skipped, rejected)


def _check(cut: Cut, accept: Callable[[Tensor], bool]) -> bool | str:
    """Whether the waveform is accepted, or the reason why it cannot be decoded."""
    try:
        return accept(load_waveform(cut))
    except UnreadableAudio as error:
        return error.what


@dataclass(frozen=True)
class _Probed:
    """A file: lhotse's recording, and a digest of its length and of some samples (or None)."""

    recording: Recording
    digest: int | None


def _probe_or_reason(path: Path) -> _Probed | str:
    try:
        return _probe(path)
    except _Unusable as reason:
        return str(reason)
    except soundfile.LibsndfileError as error:
        return f"unreadable ({_content(path) or libsndfile_reason(error, path)})"
    except Exception as error:  # soundfile raises errors of other types too
        return f"unreadable ({str(error).strip() or type(error).__name__})"


def _probe(path: Path) -> _Probed:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise _Unusable("its name is not UTF-8 text") from None
    size = file_size(path)
    if size is None:
        raise _Unusable(f"{MISSING}, {_instead(path)}")
    suffix = path.suffix.lower()
    if suffix in UNDECODABLE_SUFFIXES:
        raise _Unusable(f"{suffix} {UNDECODABLE} (libsndfile has no decoder)")
    if size == 0:
        raise _Unusable("empty")
    with soundfile.SoundFile(open_file(path)) as file:
        missing = cut_short(file)
        if missing is not None:
            raise _Unusable(missing)
        frames = file.frames
        if frames == 0:
            raise _Unusable("empty (no samples)")
        samples = _probed_samples(file)
        if _looks_wrong(file, samples):
            file.seek(0)
            reason = sample_problem(file.read(dtype="float32", always_2d=True))
            if reason is not None:
                raise _Unusable(reason)
        recording = describe(path, file)
        return _Probed(recording, _digest(frames, file.samplerate, samples))


def _instead(path: Path) -> str:
    """Describe what is in the place of a missing file."""
    if path.is_symlink():
        return f"it is a link to {os.readlink(path)}, which does not exist"
    if path.is_dir():
        return "it is a folder"
    if path.parent.is_dir():
        same = _named_alike(path)
        if not same:
            return "in any audio format"
        suffix = os.path.splitext(same[0])[1].lower()
        if suffix in UNDECODABLE_SUFFIXES:
            return f"there is {same[0]}, but {suffix} {UNDECODABLE} (libsndfile has no decoder)"
        return f"there is {same[0]}"
    absent = path.parent
    while not absent.parent.is_dir():
        absent = absent.parent
    same = _named_alike(absent)
    return f"there is no folder {absent}" + (f", but {same[0]}" if same else "")


def _named_alike(path: Path) -> list[str]:
    """Names beside a missing file or folder that differ from it in the suffix or in case.

    Audio first, then audio that cannot be read, then the shortest name.
    """

    def rank(name: str) -> tuple[int, int, str]:
        suffix = os.path.splitext(name)[1].lower()
        decodable = 0 if suffix in AUDIO_SUFFIXES else 1 if suffix in UNDECODABLE_SUFFIXES else 2
        return decodable, len(name), name

    stem = path.stem.lower()
    try:
        names = _names_in(path.parent, os.stat(path.parent).st_mtime_ns)
    except OSError:
        return []  # may be entered, but not listed
    same = [
        name
        for name in names.get(stem.split(".")[0], [])
        if name.lower() == stem or name.lower().startswith(f"{stem}.")
    ]
    return sorted(same, key=rank)


@lru_cache(maxsize=8)
def _names_in(folder: Path, modified: int) -> dict[str, list[str]]:
    """The names in a folder, by their part before the first dot, in lower case.

    Kept while the folder does not change: one with 100 000 files may lack many of them.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for name in os.listdir(folder):
        names[name.lower().split(".")[0]].append(name)
    return names


def _content(path: Path) -> str | None:
    """Describe the content of a file that is not audio; None if unknown."""
    if not path.is_file():
        return None  # In an archive, which has audio only.
    with path.open("rb") as file:
        beginning = file.read(64).lstrip().lower()
    if not beginning.strip(b"\0"):
        return "it begins with zeros, such as after a download that was cut short"
    return next((what for start, what in _CONTENTS.items() if beginning.startswith(start)), None)


def _probed_samples(file: soundfile.SoundFile) -> np.ndarray:
    """Samples (frames, channels) at a few places, the end among them."""
    count = min(file.frames, _PROBED_FRAMES)
    parts = []
    for place in _PROBED_PLACES:
        file.seek(round(place * (file.frames - count)))
        part = file.read(count, dtype="float32", always_2d=True)
        if len(part) < count:
            raise _Unusable("truncated (shorter than its header states)")
        parts.append(part)
    return np.concatenate(parts)


def _looks_wrong(file: soundfile.SoundFile, samples: np.ndarray) -> bool:
    """Whether a few samples of a file are a reason to read all of it."""
    peaks = np.abs(samples)
    return (
        file.subtype in ("FLOAT", "DOUBLE")  # rare, and the only ones that may hold any value
        or not np.isfinite(samples).all()
        or peaks.max() > 1.0
        or peaks.max() < MINIMUM_PEAK
        or _saturated(peaks) > MAXIMUM_SATURATED
        or _is_constant(samples)
        or (file.channels > 1 and _level(samples.mean(axis=1)) < MINIMUM_MEAN * _level(samples))
    )


def sample_problem(samples: np.ndarray) -> str | None:
    """The reason why the samples of a file cannot be speech within [-1, 1], or None.

    Args:
        samples: (frames, channels), float.
    """
    if not np.isfinite(samples).all():
        return "it contains non-finite values"
    peaks = np.abs(samples)
    peak = float(peaks.max())
    over = float(np.mean(peaks > 1.0))
    if over > MAXIMUM_OVER:
        return f"{over:.1%} of its samples are outside [-1, 1] (peak {peak:.6g}); scale them"
    if _is_constant(samples):
        return f"silent (all samples are {samples[0, 0]:.6g})"
    if peak < MINIMUM_PEAK:
        return f"silent (its peak is {peak:.3g}, below one step of 16-bit audio); scale its samples"
    if (saturated := _saturated(peaks)) > MAXIMUM_SATURATED:
        return f"{saturated:.1%} of its samples are at full scale; convert it from the original"
    if samples.shape[1] > 1 and _level(samples.mean(axis=1)) < MINIMUM_MEAN * _level(samples):
        return "its channels cancel each other (their mean is silence)"
    return None


def _is_constant(samples: np.ndarray) -> bool:
    return bool((samples == samples[0]).all())


def _saturated(peaks: np.ndarray) -> float:
    """The fraction of magnitudes at full scale."""
    return float(np.mean(peaks > 0.999))


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def _digest(frames: int, rate: int, samples: np.ndarray) -> int | None:
    if _is_constant(samples):
        return None  # equal for many files
    digest = hashlib.blake2b(f"{frames} {rate}".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(samples).tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


def _make_cut(utterance: Utterance, recording: Recording, digest: int | None) -> Cut:
    start = utterance.start_seconds
    end = recording.duration
    if start >= end:
        raise _Unusable(f"it ends at {end:.2f} s, the utterance starts at {start:.2f} s")
    if utterance.duration_seconds is not None:
        asked = start + utterance.duration_seconds
        if asked - end > _ROUNDING_SECONDS:
            raise _Unusable(f"too short ({end:.2f} s; {asked:.2f} s in the metadata)")
        end = min(end, asked)
    if (end - start) * SAMPLE_RATE < MINIMUM_SAMPLES:
        raise _Unusable(
            f"too short ({max(0.0, end - start):.4f} s; "
            f"the encoder needs {MINIMUM_SAMPLES / SAMPLE_RATE} s)"
        )
    cut_type: type[MonoCut] | type[MultiCut] = MonoCut
    channel: int | list[int] = 0
    if recording.num_channels > 1:
        cut_type, channel = MultiCut, list(recording.channel_ids)
    return cut_type(
        id=utterance.id,
        start=start,
        duration=end - start,
        channel=channel,
        recording=recording,
        custom={"labels": dict(utterance.labels), "digest": digest},
    )


def _progress(items: Iterable, total: int, title: str) -> Iterator:
    if sys.stderr.isatty():
        yield from track(items, description=title, total=total, console=Console(stderr=True))
        return
    logger.info("%s: %d files", title, total)
    yield from items
