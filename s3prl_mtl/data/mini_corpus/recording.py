"""Planned and rendered audio files of the mini corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Speaker:
    """A voice of espeak-ng and its modifications.

    Args:
        voice: name of the espeak-ng voice and variant, such as `en-us+m3`.
        female: whether the variant is female.
        pitch: espeak-ng's pitch, 0 to 100; 50 is the default of the variant.
        pitch_range: espeak-ng's pitch range, 0 to 100.
        words_per_minute: speaking rate.
        tract_scale: factor on all frequencies; above 1 for a shorter vocal tract.
        resonances: (centre in Hz, gain in dB) of a fixed equalisation.
    """

    voice: str
    female: bool
    pitch: float
    pitch_range: float
    words_per_minute: float
    tract_scale: float
    resonances: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Prosody:
    """Deviation of a phrase from its speaker's usual way of speaking.

    Args:
        rate: factor on the speaking rate.
        pitch: added to the speaker's pitch, in espeak-ng's units.
        pitch_range: factor on the speaker's pitch range.
        level_db: added to the level, in dB.
        tilt_db: gain of the frequencies above 1.5 kHz, in dB.
    """

    rate: float = 1.0
    pitch: float = 0.0
    pitch_range: float = 1.0
    level_db: float = 0.0
    tilt_db: float = 0.0


@dataclass(frozen=True)
class Phrase:
    """Words of one speaker without a break, `pause_seconds` after the previous phrase."""

    text: str
    speaker: Speaker
    prosody: Prosody = Prosody()
    pause_seconds: float = 0.0


@dataclass(frozen=True)
class Recording:
    """A planned audio file: parallel tracks of phrases over background noise.

    Args:
        path: path relative to the corpus root, with forward slashes.
        tracks: sequences of phrases that overlap in time; empty for noise only.
        noise: name of the background noise (`noise.NOISES`).
        noise_db: RMS level of the noise in dB of full scale.
        seconds: fixed duration; None: the speech and a short margin.
    """

    path: str
    tracks: tuple[tuple[Phrase, ...], ...]
    noise: str = "pink"
    noise_db: float = -58.0
    seconds: float | None = None


@dataclass(frozen=True)
class Rendered:
    """A written audio file: its duration and the (start, end) of each phrase, in seconds.

    `spans` are those of the first track, then of the second, and so on.
    """

    path: str
    seconds: float
    spans: tuple[tuple[float, float], ...]


Renderings = Mapping[str, Rendered]


@dataclass(frozen=True)
class Plan:
    """A planned corpus.

    Args:
        recordings: its audio files.
        write_side_files: writes its metadata, given the root folder and the renderings by path.
    """

    recordings: list[Recording]
    write_side_files: Callable[[Path, Renderings], None]


def generator(seed: int, name: str) -> np.random.Generator:
    """A random generator that depends on seed and name only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def write_lines(path: Path, lines: list[str]) -> None:
    """Write lines that end in a newline on every platform, and create the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8"))
