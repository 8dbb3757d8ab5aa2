"""Rendering of a planned recording: synthesis, speaker, prosody, level and noise."""

from __future__ import annotations

import io
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import firwin, resample_poly, sosfilt

from s3prl_mtl.data.mini_corpus.espeak import ESPEAK_RATE, synthesise
from s3prl_mtl.data.mini_corpus.noise import SAMPLE_RATE, background
from s3prl_mtl.data.mini_corpus.recording import Phrase, Recording, Rendered, generator

SPEECH_DB = -25.0
MARGIN_SECONDS = 0.08
PEAK = 0.9


def render(root: Path, seed: int, recording: Recording) -> Rendered:
    """Synthesise a recording and write it below `root`, 16 kHz mono, 16 bits.

    The bytes depend on seed and recording only, not on earlier renderings.
    """
    rng = generator(seed, recording.path)
    tracks = [[(phrase, _speak(phrase, rng)) for phrase in track] for track in recording.tracks]
    placed: list[tuple[int, np.ndarray]] = []
    end = 0
    for track in tracks:
        position = round(MARGIN_SECONDS * SAMPLE_RATE)
        for phrase, speech in track:
            position += round(phrase.pause_seconds * SAMPLE_RATE)
            placed.append((position, speech))
            position += len(speech)
        end = max(end, position)
    samples, offset = end + round(MARGIN_SECONDS * SAMPLE_RATE), 0
    if recording.seconds is not None:
        spare = round(recording.seconds * SAMPLE_RATE) - samples
        if spare < 0:
            raise RuntimeError(f"{recording.path}: the speech is longer than the file")
        samples, offset = samples + spare, int(rng.integers(spare + 1))

    waveform = background(recording.noise, samples, recording.noise_db, rng)
    for position, speech in placed:
        waveform[offset + position : offset + position + len(speech)] += speech
    waveform *= min(1.0, PEAK / np.abs(waveform).max())

    path = root / recording.path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through memory: soundfile waits for the disk after each file that it writes itself.
    content = io.BytesIO()
    soundfile.write(content, waveform, SAMPLE_RATE, format=path.suffix[1:], subtype="PCM_16")
    path.write_bytes(content.getvalue())
    spans = tuple(
        ((offset + position) / SAMPLE_RATE, (offset + position + len(speech)) / SAMPLE_RATE)
        for position, speech in placed
    )
    return Rendered(recording.path, samples / SAMPLE_RATE, spans)


def _speak(phrase: Phrase, rng: np.random.Generator) -> np.ndarray:
    """Waveform of a phrase at 16 kHz and at its level, without silence around it."""
    speaker, prosody = phrase.speaker, phrase.prosody
    # Small random changes of pitch, rate and level make each utterance different.
    speech = synthesise(
        phrase.text,
        speaker.voice,
        # Scaling the vocal tract (below) shortens the speech by the same factor.
        words_per_minute=np.clip(
            speaker.words_per_minute * prosody.rate * rng.uniform(0.95, 1.05) / speaker.tract_scale,
            80,
            440,
        ),
        pitch=np.clip(speaker.pitch + prosody.pitch + rng.uniform(-3, 3), 0, 99),
        pitch_range=np.clip(speaker.pitch_range * prosody.pitch_range, 0, 99),
    )
    speech = _trimmed(scaled_tract(speech, speaker.tract_scale))
    for hertz, gain_db in speaker.resonances:
        speech = sosfilt(_peak_filter(hertz, gain_db), speech)
    if prosody.tilt_db:
        speech = sosfilt(_high_shelf(1500.0, prosody.tilt_db), speech)
    level_db = SPEECH_DB + prosody.level_db + rng.uniform(-1, 1)
    speech = speech * 10 ** (level_db / 20) / np.sqrt(np.mean(speech**2))
    return _limited(speech)


def scaled_tract(speech: np.ndarray, scale: float) -> np.ndarray:
    """Resample to 16 kHz as if the sample rate had been `scale` times as high."""
    # In lowest terms, as resample_poly takes it: the filter is designed for these factors.
    ratio = Fraction(320, round(ESPEAK_RATE * 320 / SAMPLE_RATE * scale))
    up, down = ratio.numerator, ratio.denominator
    return resample_poly(speech, up, down, window=_low_pass(up, down))


@lru_cache(maxsize=64)
def _low_pass(up: int, down: int) -> np.ndarray:
    longest = max(up, down)
    return firwin(2 * 10 * longest + 1, 1 / longest, window=("kaiser", 5.0))


def _trimmed(speech: np.ndarray) -> np.ndarray:
    """Trim both ends where the level is 40 dB below the loudest 10 ms."""
    window = SAMPLE_RATE // 100
    frames = speech[: len(speech) // window * window].reshape(-1, window)
    energies = np.mean(frames**2, axis=1)
    loud = np.flatnonzero(energies > energies.max() * 1e-4)
    return speech[loud[0] * window : (loud[-1] + 1) * window]


def _limited(speech: np.ndarray) -> np.ndarray:
    """Compress peaks, so that voices with high peaks can be equally loud."""
    return 0.8 * np.tanh(speech / 0.8)


def _peak_filter(hertz: float, gain_db: float) -> np.ndarray:
    """Peaking filter, about one octave wide (R. Bristow-Johnson's audio EQ cookbook)."""
    root = 10 ** (gain_db / 40)
    omega = 2 * np.pi * hertz / SAMPLE_RATE
    alpha = np.sin(omega) / 2
    return _section(
        (1 + alpha * root, -2 * np.cos(omega), 1 - alpha * root),
        (1 + alpha / root, -2 * np.cos(omega), 1 - alpha / root),
    )


def _high_shelf(hertz: float, gain_db: float) -> np.ndarray:
    """High-shelf filter with `gain_db` above `hertz` (same cookbook, slope 1)."""
    root = 10 ** (gain_db / 40)
    omega = 2 * np.pi * hertz / SAMPLE_RATE
    cosine, side = np.cos(omega), 2 * np.sqrt(root) * np.sin(omega) / np.sqrt(2)
    more, less = root + 1, root - 1
    return _section(
        (
            root * (more + less * cosine + side),
            -2 * root * (less + more * cosine),
            root * (more + less * cosine - side),
        ),
        (more - less * cosine + side, 2 * (less - more * cosine), more - less * cosine - side),
    )


def _section(
    numerator: tuple[float, float, float], denominator: tuple[float, float, float]
) -> np.ndarray:
    return np.array([[*numerator, *denominator]]) / denominator[0]
