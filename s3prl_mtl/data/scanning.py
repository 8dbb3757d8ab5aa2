"""Opening every audio file of a split once: its header, and whether it can be used."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import soundfile
from lhotse import Recording
from lhotse.audio import AudioSource
from lhotse.cut import Cut, MonoCut, MultiCut
from rich.console import Console
from rich.progress import track
from torch import Tensor

from s3prl_mtl.data.audio import (
    MINIMUM_SAMPLES,
    SAMPLE_RATE,
    UnreadableAudio,
    cut_short,
    libsndfile_reason,
    load_waveform,
)
from s3prl_mtl.data.utterance import Utterance

logger = logging.getLogger(__name__)

_PROBED_FRAMES = 1024

# How far past its end a side file may place an utterance, since those round durations.
_ROUNDING_SECONDS = 0.1


@dataclass(frozen=True)
class Scan:
    """What was found in a split.

    Args:
        cuts: the usable utterances, in the corpus's order.
        skipped: (path, reason) of utterances whose file is missing, unreadable or too short.
        left_out: ids that the corpus's rule on the waveform refused.
    """

    cuts: list[Cut]
    skipped: list[tuple[str, str]]
    left_out: list[str]


class _Unusable(Exception):
    """Why a file cannot be used; stays within this module."""


def scan(
    utterances: Sequence[Utterance],
    accept: Callable[[Tensor], bool] | None,
    jobs: int | None,
    title: str,
) -> Scan:
    """Opens the file of every utterance, in parallel, with a progress bar on a terminal.

    Reads the header and the last moments of each file, which shows most truncated ones; decodes
    the whole only where `accept` has to see it. Threads suffice: libsndfile and numpy release the
    interpreter while they work.

    Args:
        utterances: a split.
        accept: the corpus's rule on the waveform, or None.
        jobs: threads; None takes the number of cores.
        title: what the progress bar says.
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
                cuts.append(_make_cut(utterance, found))
            except _Unusable as reason:
                skipped.append((str(utterance.path), str(reason)))
        if accept is None:
            return Scan(cuts, skipped, [])
        judged = _progress(
            pool.map(lambda cut: _judge(cut, accept), cuts), len(cuts), f"{title}, decoding"
        )
        return _keep_accepted(cuts, list(judged), skipped)


def _keep_accepted(
    cuts: list[Cut], judged: list[bool | str], skipped: list[tuple[str, str]]
) -> Scan:
    kept: list[Cut] = []
    left_out: list[str] = []
    for cut, verdict in zip(cuts, judged, strict=True):
        if isinstance(verdict, str):
            skipped.append((str(cut.recording.sources[0].source), verdict))
        elif verdict:
            kept.append(cut)
        else:
            left_out.append(cut.id)
    return Scan(kept, skipped, left_out)


def _judge(cut: Cut, accept: Callable[[Tensor], bool]) -> bool | str:
    try:
        return accept(load_waveform(cut))
    except UnreadableAudio as error:
        return error.what


def _probe_or_reason(path: Path) -> Recording | str:
    try:
        return _probe(path)
    except _Unusable as reason:
        return str(reason)
    except soundfile.LibsndfileError as error:
        return f"unreadable ({libsndfile_reason(error, path)})"
    except Exception as error:  # what else soundfile raises on damaged files, and the system
        return f"unreadable ({str(error).strip() or type(error).__name__})"


def _probe(path: Path) -> Recording:
    if not path.is_file():
        raise _Unusable("missing")
    if path.stat().st_size == 0:
        raise _Unusable("empty")
    with soundfile.SoundFile(path) as file:
        missing = cut_short(file)
        if missing is not None:
            raise _Unusable(missing)
        frames = file.frames
        if frames == 0:
            raise _Unusable("empty (no samples)")
        tail = min(frames, _PROBED_FRAMES)
        file.seek(frames - tail)
        if len(file.read(tail, dtype="float32")) < tail:
            raise _Unusable("truncated (it ends before its header says)")
        channels = list(range(file.channels))
        return Recording(
            id=path.stem,
            sources=[AudioSource(type="file", channels=channels, source=str(path))],
            sampling_rate=file.samplerate,
            num_samples=frames,
            duration=frames / file.samplerate,
            channel_ids=channels,
        )


def _make_cut(utterance: Utterance, recording: Recording) -> Cut:
    start = utterance.start_seconds
    end = recording.duration
    if utterance.duration_seconds is not None:
        asked = start + utterance.duration_seconds
        if asked - end > _ROUNDING_SECONDS:
            raise _Unusable(f"too short ({end:.2f} s; its side files say {asked:.2f} s)")
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
        custom={"labels": dict(utterance.labels)},
    )


def _progress(items: Iterable, total: int, title: str) -> Iterator:
    if sys.stderr.isatty():
        yield from track(items, description=title, total=total, console=Console(stderr=True))
        return
    logger.info("%s: %d files", title, total)
    yield from items
