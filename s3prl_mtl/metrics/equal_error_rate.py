"""Where a verification system accepts as many impostors as it rejects targets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from s3prl_mtl.errors import UserError


class EqualErrorRate(NamedTuple):
    """The rate, a fraction, and the score at which it is reached."""

    rate: float
    threshold: float


def equal_error_rate(labels: ArrayLike, scores: ArrayLike) -> EqualErrorRate:
    """The point of the ROC curve, with straight lines between its points, where FAR equals FRR.

    Args:
        labels: 1 for a trial of one speaker, 0 for a trial of two (N,).
        scores: the greater, the more alike (N,).

    Raises:
        ValueError: the two differ in number, or a label is neither 0 nor 1.
        UserError: trials of one kind are missing, or a score is not a finite number.

    Source: the definition that VoxCeleb and SUPERB score by. Along the curve the difference of
    the two rates falls from 1 to -1 with each score passed, so that its zero is one point.
    """
    truth = np.asarray(labels).reshape(-1)
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(truth) != len(values):
        raise ValueError(f"{len(truth)} labels, but {len(values)} scores")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels of trials must be 0 or 1")
    targets, impostors = int((truth == 1).sum()), int((truth == 0).sum())
    if not targets or not impostors:
        raise UserError(
            f"An equal error rate needs trials of both kinds, but there are {targets} of one "
            f"speaker and {impostors} of two.",
            fix="check the trial list.",
        )
    if not np.isfinite(values).all():
        raise UserError("A trial's score is not a finite number.", fix="check the embeddings.")

    order = np.argsort(-values, kind="stable")
    values, truth = values[order], truth[order]
    # One point of the curve for each distinct score: equal scores are accepted together.
    last_of_score = np.flatnonzero(np.append(np.diff(values) != 0, True))
    accepted_targets = np.cumsum(truth == 1)[last_of_score]
    false_acceptance = np.append(0.0, (last_of_score + 1 - accepted_targets) / impostors)
    false_rejection = np.append(1.0, (targets - accepted_targets) / targets)
    # Nothing is accepted above the highest score.
    thresholds = values[last_of_score][np.append(0, np.arange(len(last_of_score)))]

    difference = false_rejection - false_acceptance
    after = int(np.argmax(difference <= 0))
    before = after - 1
    share = difference[before] / (difference[before] - difference[after])

    def between(points: np.ndarray) -> float:
        return float(points[before] + share * (points[after] - points[before]))

    return EqualErrorRate(between(false_acceptance), between(thresholds))
