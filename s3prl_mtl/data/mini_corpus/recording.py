"""What one audio file of the mini corpus is to hold, before and after it is synthesised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Speaker:
    """A voice: an espeak-ng voice and what is changed about it.

    Args:
        voice: name of the espeak-ng voice and variant, such as `en-us+m3`.
        female: whether the variant is a woman's voice.
        pitch: espeak-ng's pitch, 0 to 100, 50 being the variant's own.
        pitch_range: espeak-ng's pitch range, 0 to 100.
        words_per_minute: speaking rate.
        tract_scale: factor on all frequencies, as of a shorter (> 1) or longer vocal tract.
        resonances: (centre in Hz, gain in dB) of the speaker's fixed equalisation.
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
    """How a phrase departs from its speaker's usual way of speaking.

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
    """Words that one speaker says without a break, `pause_seconds` after the phrase before."""

    text: str
    speaker: Speaker
    prosody: Prosody = Prosody()
    pause_seconds: float = 0.0


@dataclass(frozen=True)
class Recording:
    """One audio file: parallel tracks of phrases over a background noise.

    Args:
        path: where it lies, relative to the corpus root, with forward slashes.
        tracks: each a sequence of phrases; tracks overlap in time. None: noise only.
        noise: name of the background noise (`noise.NOISES`).
        noise_db: its level (RMS), in dB of full scale.
        seconds: fixed length; None: as long as the speech and a little silence around it.
    """

    path: str
    tracks: tuple[tuple[Phrase, ...], ...]
    noise: str = "pink"
    noise_db: float = -58.0
    seconds: float | None = None


@dataclass(frozen=True)
class Rendered:
    """What became of a recording: its length, and where each phrase lies, in seconds.

    `spans` holds (start, end) of the phrases of the first track, then of the second, ...
    """

    path: str
    seconds: float
    spans: tuple[tuple[float, float], ...]


Renderings = Mapping[str, Rendered]


@dataclass(frozen=True)
class Plan:
    """A corpus to be: its recordings, and what writes its side files once they are rendered.

    `write_side_files(root, renderings)` gets the corpus root and the renderings by path.
    """

    recordings: list[Recording]
    write_side_files: Callable[[Path, Renderings], None]


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers that depend on the seed and the name only, not on what was drawn before."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def write_lines(path: Path, lines: list[str]) -> None:
    """Write text lines, each ended by a newline on every platform, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8"))
