"""Diarization errors: missed speech, false alarms and speaker confusion."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s3prl_mtl.errors import UserError


@dataclass(frozen=True)
class DiarizationErrors:
    """Error counts in (frame, speaker) pairs.

    Add the counts of several recordings with `sum(counts, DiarizationErrors())`.
    """

    miss: int = 0
    false_alarm: int = 0
    confusion: int = 0
    speech: int = 0
    """Frames of reference speech; overlapped frames count once per speaker."""

    def __add__(self, other: DiarizationErrors) -> DiarizationErrors:
        return DiarizationErrors(
            self.miss + other.miss,
            self.false_alarm + other.false_alarm,
            self.confusion + other.confusion,
            self.speech + other.speech,
        )

    @property
    def error_rate(self) -> float:
        """Diarization error rate, a fraction; can exceed 1.

        Raises:
            UserError: no reference speech.
        """
        if self.speech == 0:
            raise _no_speech()
        return (self.miss + self.false_alarm + self.confusion) / self.speech


def _no_speech() -> UserError:
    return UserError(
        "The diarization error rate is undefined: the references contain no speech.",
        fix="Check the speaker labels of the split that is scored.",
        code="undefined-metric",
    )


def _activity(frames: ArrayLike) -> NDArray[np.bool_]:
    activity = np.asarray(frames)
    if activity.ndim != 2:
        raise ValueError(f"expected activity of shape (frames, speakers), found {activity.shape}")
    return activity.astype(bool)


def _same_shape(
    reference: ArrayLike, hypothesis: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both as (frames, speakers), padded with silent speakers to the same shape."""
    expected, found = _activity(reference), _activity(hypothesis)
    if len(expected) != len(found):
        raise ValueError(f"{len(expected)} frames of reference, but {len(found)} of hypothesis")
    speakers = max(expected.shape[1], found.shape[1])
    padded = [np.pad(side, ((0, 0), (0, speakers - side.shape[1]))) for side in (expected, found)]
    return padded[0], padded[1]


def frame_diarization_errors(reference: ArrayLike, hypothesis: ArrayLike) -> DiarizationErrors:
    """Errors of a chunk with speakers in the same order in reference and hypothesis.

    Args:
        reference: speech activity (frames, speakers), 0 or 1.
        hypothesis: speech activity for the same frames.

    Raises:
        ValueError: the numbers of frames differ.

    Source: NIST, "The 2009 RT evaluation plan", section 6; EEND and SUPERB count in frames.
    """
    expected, found = _same_shape(reference, hypothesis)
    expected_count, found_count = expected.sum(axis=1), found.sum(axis=1)
    right = (expected & found).sum(axis=1)
    return DiarizationErrors(
        miss=int(np.maximum(expected_count - found_count, 0).sum()),
        false_alarm=int(np.maximum(found_count - expected_count, 0).sum()),
        confusion=int((np.minimum(expected_count, found_count) - right).sum()),
        speech=int(expected_count.sum()),
    )


def frame_accuracy(reference: ArrayLike, hypothesis: ArrayLike) -> float:
    """Fraction of correct (frame, speaker) pairs, with speakers in the same order.

    Args:
        reference: speech activity (frames, speakers), 0 or 1.
        hypothesis: speech activity for the same frames.

    Raises:
        ValueError: the numbers of frames differ.
        UserError: no frames.
    """
    expected, found = _same_shape(reference, hypothesis)
    if expected.size == 0:
        raise UserError("The accuracy is undefined without frames.", code="undefined-metric")
    return float((expected == found).mean())


def diarization_errors(reference: ArrayLike, hypothesis: ArrayLike) -> DiarizationErrors:
    """Errors of one recording under the optimal one-to-one mapping of speakers.

    The mapping maximises the frames in common. No collar; overlap is scored. The numbers of
    speakers may differ.

    Args:
        reference: speech activity (frames, speakers), 0 or 1.
        hypothesis: speech activity for the same frames.

    Raises:
        ValueError: the numbers of frames differ.

    Source: the rules of NIST's md-eval. Same result as `diarization_error_rate`, which uses
    pyannote.metrics, but fast enough for a search over thresholds.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    expected, found = _same_shape(reference, hypothesis)
    shared = expected.T.astype(np.int64) @ found.astype(np.int64)
    _, mapped = linear_sum_assignment(shared, maximize=True)
    return frame_diarization_errors(expected, found[:, mapped])


def diarization_error_rate(
    recordings: Iterable[tuple[ArrayLike, ArrayLike]], frame_seconds: float = 0.01
) -> float:
    """Diarization error rate over recordings, a fraction, as scored by NIST.

    Total errors over total reference speech, with a one-to-one mapping of speakers within each
    recording; no collar; overlap is scored. Computed by pyannote.metrics.

    Args:
        recordings: reference and hypothesis of each, (frames, speakers), 0 or 1.
        frame_seconds: duration of a frame.

    Raises:
        ValueError: the numbers of frames differ.
        UserError: no reference speech.

    Reference: Bredin, "pyannote.metrics", Interspeech 2017.
    """
    # Slow to import; no other metric needs it.
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotation(activity: NDArray[np.bool_]) -> Annotation:
        turns = Annotation()
        for speaker, frames in enumerate(activity.T):
            edges = np.flatnonzero(np.diff(np.pad(frames.astype(np.int8), 1)))
            for start, end in zip(edges[::2], edges[1::2], strict=True):
                turns[Segment(start * frame_seconds, end * frame_seconds), speaker] = speaker
        return turns

    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    speech = 0.0
    for reference, hypothesis in recordings:
        expected, found = _same_shape(reference, hypothesis)
        scored = Timeline([Segment(0.0, len(expected) * frame_seconds)])
        parts = metric(annotation(expected), annotation(found), uem=scored, detailed=True)
        speech += parts["total"]
    if not speech:
        raise _no_speech()
    return float(abs(metric))
