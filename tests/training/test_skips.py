"""Skipped steps that abort a run."""

from __future__ import annotations

import math

from s3prl_mtl.training.skips import MAXIMUM_IN_A_ROW, SkipCounts
from tests.mistakes import user_error


def test_fifty_steps_in_a_row_without_a_task_abort_the_run():
    skips = SkipCounts(["ks", "er"])
    for step in range(1, MAXIMUM_IN_A_ROW):
        skips.count_losses(step, {"er"})
    skips.count_losses(MAXIMUM_IN_A_ROW, set())
    for step in range(1, MAXIMUM_IN_A_ROW):
        skips.count_losses(step, {"er"})
    resumed = SkipCounts(["ks", "er"])
    resumed.load_state_dict(skips.state_dict())
    assert resumed.dropped_steps == {"ks": 0, "er": 2 * (MAXIMUM_IN_A_ROW - 1)}
    with user_error("non-finite", where="step 100, task er"):
        resumed.count_losses(100, {"er"})


def test_fifty_non_finite_gradients_in_a_row_abort_the_run():
    skips, source = SkipCounts(["ks"]), "the head of ks"
    for step in range(1, MAXIMUM_IN_A_ROW):
        skips.count_norm(step, math.inf, [source])
    with user_error("non-finite", where="step 50") as caught:
        skips.count_norm(MAXIMUM_IN_A_ROW, math.nan, [source])
    assert source in caught.value.what


def test_only_counts_above_zero_are_metrics():
    skips = SkipCounts(["ks", "er"])
    assert skips.counts() == {}
    skips.count_losses(1, {"er"})
    assert skips.counts() == {"dropped_steps_er": 1}
