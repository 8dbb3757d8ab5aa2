"""Silence trimming of SUPERB's speaker verification."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from s3prl_mtl.data.audio import SAMPLE_RATE

_WINDOW_SAMPLES = SAMPLE_RATE // 50


def trim_silence(waveform: Tensor, threshold: float = 0.001, seconds: float = 0.1) -> Tensor:
    """Remove silences like `sox silence 1 0.1 0.1% -1 0.1 0.1%`.

    This is the last effect of SUPERB's speaker verification (mono, 16 kHz, -3 dB, silence).
    According to SoX's manual: drop everything until `seconds` of continuous sound; copy until
    `seconds` of continuous silence; drop those and start over. A sample is sound if the root mean
    square of the 20 ms that end with it exceeds `threshold`; the 20 ms window is cleared whenever
    the search for sound starts over::

        silence  | sound .........|pause| sound ...| silence >= 0.1 s | sound ...| < 0.1 s
        dropped  | kept            kept   kept     | dropped          | kept       kept

    A sound shorter than `seconds` is therefore dropped after a silence.

    Difference to SoX: SoX first rounds the root mean square down to the bit depth of the file,
    which moves the threshold by less than one step of 16 bits.

    Args:
        waveform: (samples,) at 16 kHz.
        threshold: fraction of full scale.
        seconds: minimum duration of sound and of silence.

    Returns:
        Waveform (kept_samples,); empty if there is no sound.
    """
    samples = waveform.numpy()
    run = round(seconds * SAMPLE_RATE)
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    limit = threshold**2 * _WINDOW_SAMPLES
    window_start = np.maximum(np.arange(1, len(samples) + 1) - _WINDOW_SAMPLES, 0)
    sound = energy[1:] - energy[window_start] > limit

    kept: list[np.ndarray] = []
    restart = 0
    while restart < len(samples):
        # Until it is full again, the window contains only samples after the restart.
        refilled = min(restart + _WINDOW_SAMPLES, len(samples))
        searched = sound[restart:].copy()
        searched[: refilled - restart] = (
            energy[restart + 1 : refilled + 1] - energy[restart] > limit
        )
        onset = _first_run(searched, run)
        if onset is None:
            break
        copied_from = restart + onset
        silence = _first_run(~sound[copied_from + run :], run)
        if silence is None:
            kept.append(samples[copied_from:])
            break
        copied_to = copied_from + run + silence
        kept.append(samples[copied_from:copied_to])
        restart = copied_to + run
    if not kept:
        return waveform[:0].clone()
    return torch.from_numpy(np.concatenate(kept))


def _first_run(flags: np.ndarray, length: int) -> int | None:
    """Start of the first run of at least `length` true flags, or None."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    starts, ends = edges[0::2], edges[1::2]
    long_enough = np.flatnonzero(ends - starts >= length)
    return int(starts[long_enough[0]]) if len(long_enough) else None
