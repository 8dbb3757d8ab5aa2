"""Ranges of metrics, and how tables show their values."""

from __future__ import annotations

import math

import pytest

from s3prl_mtl import Metric
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS


def test_a_metric_is_a_fraction_by_default():
    metric = Metric("acc", "higher", "accuracy")
    assert (metric.range, metric.interval) == ((0.0, 1.0), "[0, 1]")
    assert metric.shown(0.1234) == "12.34 %"


@pytest.mark.parametrize(
    ("ends", "interval"),
    [
        ((0.0, math.inf), "[0, inf)"),
        ((-math.inf, 1.0), "(-inf, 1]"),
        ((-math.inf, math.inf), "(-inf, inf)"),
        ((1.0, 5.0), "[1, 5]"),
    ],
)
def test_an_infinite_end_of_a_range_is_open(ends: tuple[float, float], interval: str):
    assert Metric("x", "lower", "x", range=ends).interval == interval


@pytest.mark.parametrize(
    ("value", "shown"), [(12.3456789, "12.346"), (0.5, "0.5"), (3.2e-5, "3.2e-05"), (0.0, "0")]
)
def test_a_value_that_is_not_a_fraction_is_shown_unscaled(value: float, shown: str):
    assert Metric("mse", "lower", "MSE", range=(0.0, math.inf), percent=False).shown(value) == shown


def test_an_object_with_fewer_attributes_gets_the_defaults():
    class Declared:
        name, better, title = "acc", "higher", "accuracy"

    assert Metric.of(Declared()) == Metric("acc", "higher", "accuracy")
    with pytest.raises(TypeError):
        Metric.of("acc")


def test_the_built_in_rates_that_count_insertions_are_unbounded():
    metrics = {metric for task in BUILT_IN_TASKS for metric in load_task(task).metrics}
    unbounded = {metric.name for metric in metrics if metric.range == (0.0, math.inf)}
    rates = {"wer", "wer_lm", "uer", "cer", "per", "der", "slot_value_cer", "slot_value_wer"}
    assert unbounded == rates
    assert {metric.range for metric in metrics if metric.name not in unbounded} == {(0.0, 1.0)}
