"""Equal error rate of speaker verification."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from s3prl_mtl.errors import UserError


class EqualErrorRate(NamedTuple):
    """The rate (a fraction) and the score threshold at which it is reached."""

    rate: float
    threshold: float


def equal_error_rate(labels: ArrayLike, scores: ArrayLike) -> EqualErrorRate:
    """Point of the linearly interpolated ROC curve with equal false acceptance and rejection.

    Args:
        labels: 1 for a target trial (same speaker), 0 for an impostor trial (N,).
        scores: similarity of each trial; higher is more similar (N,).

    Raises:
        ValueError: different numbers of labels and scores, or a label other than 0 and 1.
        UserError: no target trials, no impostor trials, or a non-finite score.

    Source: the definition used by VoxCeleb and SUPERB. Along the curve, false rejection minus
    false acceptance falls from 1 to -1, so that its zero is unique.
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
            "The equal error rate is undefined without target trials or without impostor trials.",
            where=f"{targets} target and {impostors} impostor trials",
            fix="Check the trial list.",
            code="undefined-metric",
        )
    if not np.isfinite(values).all():
        raise UserError(
            "The score of a trial is not finite.",
            where=f"trial {int(np.flatnonzero(~np.isfinite(values))[0])} of {len(values)}",
            fix="Check the embeddings.",
            code="undefined-metric",
        )

    order = np.argsort(-values, kind="stable")
    values, truth = values[order], truth[order]
    # One point of the curve per distinct score: equal scores are accepted together.
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
