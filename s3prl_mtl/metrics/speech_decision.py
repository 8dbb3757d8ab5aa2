"""From the probability that a speaker speaks to the decision, and the best way to decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import medfilt

from s3prl_mtl.metrics.diarization import DiarizationErrors, diarization_errors


def decide_speech(
    probabilities: ArrayLike, threshold: float = 0.5, median_filter: int = 1
) -> NDArray[np.int8]:
    """Who speaks: above the threshold, then smoothed over time.

    Args:
        probabilities: (frames, speakers).
        threshold: a fraction; equal to it is not above it.
        median_filter: frames of the median, odd; 1 leaves the decisions as they are. Beyond both
            ends lies silence.

    Returns:
        (frames, speakers), 0 or 1.

    Raises:
        ValueError: the filter is even or not positive.

    Source: EEND and SUPERB.
    """
    if median_filter < 1 or median_filter % 2 == 0:
        raise ValueError(f"a median filter has an odd number of frames, not {median_filter}")
    decisions = (np.asarray(probabilities) > threshold).astype(np.float32)
    if median_filter > 1:
        # The silence that the filter assumes: scipy warns where it is longer than the decisions.
        silence = np.zeros((median_filter // 2, decisions.shape[1]), dtype=np.float32)
        padded = np.concatenate([silence, decisions, silence])
        decisions = medfilt(padded, (median_filter, 1))[
            len(silence) : len(silence) + len(decisions)
        ]
    return decisions.astype(np.int8)


@dataclass(frozen=True)
class SpeechDecision:
    """A way to decide who speaks, and the diarization error rate that it reaches."""

    threshold: float
    median_filter: int
    error_rate: float


def best_decision(
    recordings: Iterable[tuple[ArrayLike, ArrayLike]],
    thresholds: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7),
    median_filters: Sequence[int] = (1, 11),
) -> SpeechDecision:
    """The threshold and median filter with the lowest diarization error rate, the first of equals.

    Args:
        recordings: for each, the reference (frames, speakers), 0 or 1, and the probabilities of
            the same shape.
        thresholds: what to try; SUPERB's by default.
        median_filters: what to try with each threshold.

    Raises:
        ValueError: there is nothing to try, or the numbers of frames differ.
        UserError: the references hold no speech.

    Source: SUPERB's diarization, which searches on the development set.
    """
    settings = [(threshold, size) for threshold in thresholds for size in median_filters]
    if not settings:
        raise ValueError("best_decision needs at least one threshold and one median filter")
    totals = [DiarizationErrors()] * len(settings)
    for reference, probabilities in recordings:
        for index, (threshold, size) in enumerate(settings):
            decided = decide_speech(probabilities, threshold, size)
            totals[index] += diarization_errors(reference, decided)
    rates = [total.error_rate for total in totals]
    best = int(np.argmin(rates))
    return SpeechDecision(*settings[best], rates[best])
