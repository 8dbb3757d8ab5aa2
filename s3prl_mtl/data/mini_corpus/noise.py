"""Synthesised background noises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.signal import butter, sosfilt

SAMPLE_RATE = 16_000


def _shaped(samples: int, rng: np.random.Generator, slope: float) -> np.ndarray:
    """Gaussian noise with an amplitude proportional to frequency ** -slope above 30 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    return np.fft.irfft(spectrum * np.maximum(hertz, 30.0) ** -slope, samples)


def _white(samples: int, rng: np.random.Generator) -> np.ndarray:
    return _shaped(samples, rng, 0.0)


def _pink(samples: int, rng: np.random.Generator) -> np.ndarray:
    return _shaped(samples, rng, 0.5)


def _brown(samples: int, rng: np.random.Generator) -> np.ndarray:
    return _shaped(samples, rng, 1.0)


def _tap(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Running water: noise between 1 and 5 kHz with slow modulation."""
    band = butter(2, (1000, 5000), "bandpass", fs=SAMPLE_RATE, output="sos")
    swell = 1 + 0.3 * np.sin(2 * np.pi * (_seconds(samples) * 0.7 + rng.random()))
    return sosfilt(band, rng.standard_normal(samples)) * swell


def _hum(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Mains hum with harmonics over pink noise."""
    time = _seconds(samples)
    tones = sum(
        np.sin(2 * np.pi * (50 * order * time + rng.random())) / order for order in (1, 2, 3, 5, 7)
    )
    return tones + 0.3 * _pink(samples, rng) * np.sqrt(SAMPLE_RATE)


def _bike(samples: int, rng: np.random.Generator) -> np.ndarray:
    """An exercise bike: low noise modulated twice per second."""
    beat = 0.35 + np.sin(2 * np.pi * (_seconds(samples) * 2.1 + rng.random())) ** 2
    return _shaped(samples, rng, 0.7) * beat


def _seconds(samples: int) -> np.ndarray:
    return np.arange(samples) / SAMPLE_RATE


NOISES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "white": _white,
    "pink": _pink,
    "brown": _brown,
    "tap": _tap,
    "hum": _hum,
    "bike": _bike,
}


def background(name: str, samples: int, level_db: float, rng: np.random.Generator) -> np.ndarray:
    """The named noise (samples,) with an RMS level of `level_db` dB of full scale."""
    noise = NOISES[name](samples, rng)
    return noise * 10 ** (level_db / 20) / np.sqrt(np.mean(noise**2))
