"""The equal error rate, against the original's value, root finding, and cases done by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq

from s3prl_mtl.metrics import equal_error_rate
from tests.mistakes import user_error


def test_the_rate_equals_that_of_the_original(golden: Callable[[str], dict[str, Any]]) -> None:
    case = golden("metrics")["eer"]
    result = equal_error_rate(case["labels"], case["scores"])
    assert result.rate == pytest.approx(case["value"], rel=1e-9)


def root_of_the_curve(labels: np.ndarray, scores: np.ndarray) -> float:
    """Where 1 - x meets the ROC curve, its points counted one threshold at a time."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores.tolist()), reverse=True):
        accepted = scores >= threshold
        points.append((accepted[labels == 0].mean(), accepted[labels == 1].mean()))
    false_acceptance, true_acceptance = zip(*points, strict=True)
    return brentq(lambda x: 1 - x - np.interp(x, false_acceptance, true_acceptance), 0.0, 1.0)


@pytest.mark.parametrize("levels", [3, 10, 10_000])
def test_the_rate_is_the_root_on_the_interpolated_curve(levels: int) -> None:
    drawn = np.random.default_rng(levels)
    for _ in range(30):
        labels = np.append([0, 1], drawn.integers(0, 2, drawn.integers(1, 80)))
        # Few levels make many trials share a score.
        scores = np.round(drawn.normal(labels * drawn.normal()) * levels) / levels
        expected = root_of_the_curve(labels, scores)
        assert equal_error_rate(labels, scores).rate == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "scores", "rate", "threshold"),
    [
        ([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1], 0.0, 0.8),
        ([0, 0, 1, 1], [0.9, 0.8, 0.2, 0.1], 1.0, 0.8),
        ([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1], 0.5, 0.8),
        ([1, 0], [0.5, 0.5], 0.5, 0.5),
        # Between accepting (0 of 2 impostors, 1 of 3 targets) and, at 0.4 together, all others.
        ([1, 1, 1, 0, 0], [0.9, 0.4, 0.4, 0.4, 0.4], 0.4, 0.7),
    ],
)
def test_rate_and_threshold_of_small_cases(
    labels: list[int], scores: list[float], rate: float, threshold: float
) -> None:
    result = equal_error_rate(labels, scores)
    assert result.rate == pytest.approx(rate)
    assert result.threshold == pytest.approx(threshold)


@pytest.mark.parametrize("labels", [[1, 1], [0, 0]])
def test_trials_of_one_kind_are_an_error(labels: list[int]) -> None:
    with user_error("undefined-metric", where=f"{labels.count(1)} .* {labels.count(0)} "):
        equal_error_rate(labels, [0.1, 0.2])


def test_invalid_labels_and_scores_are_errors() -> None:
    with user_error("undefined-metric", where="trial 1 of 2"):
        equal_error_rate([0, 1], [0.1, float("nan")])
    with pytest.raises(ValueError, match=r"\b0 or 1\b"):
        equal_error_rate([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"\b2\b.*\b1\b"):
        equal_error_rate([0, 1], [0.1])
