"""Speech activity from probabilities, and the search for the best threshold and filter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3prl_mtl.metrics.diarization import DiarizationErrors, diarization_errors


def decide_speech(
    probabilities: ArrayLike, threshold: float = 0.5, median_filter: int = 1
) -> NDArray[np.int8]:
    """Speech activity: threshold, then median filter over time.

    Args:
        probabilities: (frames, speakers).
        threshold: activity is a probability strictly above it.
        median_filter: odd length of the filter in frames; 1 for none. Both ends are padded with
            silence.

    Returns:
        (frames, speakers), 0 or 1.

    Raises:
        ValueError: the filter length is even or not positive.

    Source: EEND and SUPERB.
    """
    if median_filter < 1 or median_filter % 2 == 0:
        raise ValueError(f"a median filter must have a positive odd length, found {median_filter}")
    decisions = np.asarray(probabilities) > threshold
    if median_filter > 1:
        # The median of zeros and ones is what most of them are.
        half = median_filter // 2
        counts = np.pad(decisions.astype(np.int64), ((half + 1, half), (0, 0))).cumsum(axis=0)
        decisions = counts[median_filter:] - counts[:-median_filter] > half
    return decisions.astype(np.int8)


@dataclass(frozen=True)
class SpeechDecision:
    """Threshold and median filter length, with the diarization error rate they reach."""

    threshold: float
    median_filter: int
    error_rate: float


def best_decision(
    recordings: Iterable[tuple[ArrayLike, ArrayLike]],
    thresholds: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7),
    median_filters: Sequence[int] = (1, 11),
) -> SpeechDecision:
    """Threshold and median filter with the lowest diarization error rate; ties go to the first.

    Args:
        recordings: reference (frames, speakers), 0 or 1, and probabilities of each recording.
        thresholds: candidates; default: those of SUPERB.
        median_filters: candidate filter lengths in frames.

    Raises:
        ValueError: no candidates, or the numbers of frames differ.
        UserError: no reference speech.

    Source: SUPERB's diarization, which searches on the dev split.
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
