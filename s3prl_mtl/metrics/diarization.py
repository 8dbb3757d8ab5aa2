"""Errors of diarization: speech missed, invented, or given to the wrong speaker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from s3prl_mtl.errors import UserError


@dataclass(frozen=True)
class DiarizationErrors:
    """Counts of frames, each frame counting once for every speaker concerned.

    Counts of several recordings add up: `sum(counts, DiarizationErrors())`.
    """

    miss: int = 0
    false_alarm: int = 0
    confusion: int = 0
    speech: int = 0
    """Frames of reference speech, overlap counted for each speaker."""

    def __add__(self, other: DiarizationErrors) -> DiarizationErrors:
        return DiarizationErrors(
            self.miss + other.miss,
            self.false_alarm + other.false_alarm,
            self.confusion + other.confusion,
            self.speech + other.speech,
        )

    @property
    def error_rate(self) -> float:
        """The diarization error rate, a fraction; can exceed 1.

        Raises:
            UserError: the reference holds no speech.
        """
        if self.speech == 0:
            raise UserError(
                "The references hold no speech, so the diarization error rate is undefined.",
                fix="check the speaker labels of the split that is scored.",
            )
        return (self.miss + self.false_alarm + self.confusion) / self.speech


def _activity(frames: ArrayLike) -> NDArray[np.bool_]:
    activity = np.asarray(frames)
    if activity.ndim != 2:
        raise ValueError(f"activity must be (frames, speakers), found shape {activity.shape}")
    return activity.astype(bool)


def _same_shape(
    reference: ArrayLike, hypothesis: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both as (frames, speakers), silent speakers added where one has fewer."""
    expected, found = _activity(reference), _activity(hypothesis)
    if len(expected) != len(found):
        raise ValueError(f"{len(expected)} frames of reference, but {len(found)} of hypothesis")
    speakers = max(expected.shape[1], found.shape[1])
    padded = [np.pad(side, ((0, 0), (0, speakers - side.shape[1]))) for side in (expected, found)]
    return padded[0], padded[1]


def frame_diarization_errors(reference: ArrayLike, hypothesis: ArrayLike) -> DiarizationErrors:
    """Errors of a chunk whose speakers are already in the same order on both sides.

    Args:
        reference: who speaks, (frames, speakers), 0 or 1.
        hypothesis: the same, for the same frames.

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
    """The fraction of (frame, speaker) pairs that are right, speakers in the same order.

    Args:
        reference: who speaks, (frames, speakers), 0 or 1.
        hypothesis: the same, for the same frames.

    Raises:
        ValueError: the numbers of frames differ.
        UserError: there is no frame.
    """
    expected, found = _same_shape(reference, hypothesis)
    if expected.size == 0:
        raise UserError("A frame accuracy needs at least one frame.")
    return float((expected == found).mean())


def diarization_errors(reference: ArrayLike, hypothesis: ArrayLike) -> DiarizationErrors:
    """Errors of one recording under the one-to-one mapping of speakers that shares most frames.

    No collar, overlap scored. The numbers of speakers may differ.

    Args:
        reference: who speaks, (frames, speakers), 0 or 1.
        hypothesis: the same, for the same frames.

    Raises:
        ValueError: the numbers of frames differ.

    Source: the rules of NIST's md-eval; `diarization_error_rate` gives the same through
    pyannote.metrics, this counts frames and is fast enough to search over decisions.
    """
    expected, found = _same_shape(reference, hypothesis)
    shared = expected.T.astype(np.int64) @ found.astype(np.int64)
    _, mapped = linear_sum_assignment(shared, maximize=True)
    return frame_diarization_errors(expected, found[:, mapped])


def diarization_error_rate(
    recordings: Iterable[tuple[ArrayLike, ArrayLike]], frame_seconds: float = 0.01
) -> float:
    """The diarization error rate over recordings, a fraction, as NIST scores it.

    The errors of all recordings over the reference speech of all, speakers mapped one to one
    within each recording; no collar, overlap scored. Computed by pyannote.metrics.

    Args:
        recordings: for each, the reference and the hypothesis, (frames, speakers), 0 or 1.
        frame_seconds: length of a frame.

    Raises:
        ValueError: the numbers of frames differ.
        UserError: the references hold no speech.

    Reference: Bredin, "pyannote.metrics", Interspeech 2017.
    """
    # Imported here because it takes longer to import than all else that metrics need.
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
        raise UserError(
            "The references hold no speech, so the diarization error rate is undefined.",
            fix="check the speaker labels of the split that is scored.",
        )
    return float(abs(metric))
