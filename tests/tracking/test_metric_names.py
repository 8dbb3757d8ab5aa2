"""Log lines and tables name a metric and its unit alike."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS
from s3prl_mtl.tasks.metric import Metric, metrics_of
from s3prl_mtl.tracking.recorder import Recorder, Report
from s3prl_mtl.tracking.results_table import results_table

SLOT_TITLES = {"slot type F1", "slot value CER", "slot value WER", "WER", "CER"}
TITLES = {
    "asr": {"WER", "UER", "WER with LM"},
    "pr": {"PER"},
    "sf": SLOT_TITLES | {"slot edit F1, full", "slot edit F1, part"},
    "ks": {"accuracy"},
    "ic": {"accuracy"},
    "sid": {"accuracy"},
    "er": {"accuracy"},
    "sv": {"EER"},
    "sd": {"DER", "frame accuracy"},
}
"""All are in percent, as in SUPERB's tables."""


@pytest.mark.parametrize("task", BUILT_IN_TASKS)
def test_every_metric_is_in_percent_by_one_name(task: str, tmp_path: Path):
    metrics = metrics_of(load_task(task))
    values = {metric.name: 0.1234 for metric in metrics} | {"loss": 1.5}
    report = Report(task, "test", [(n, v, 1) for n, v in values.items()], metrics=metrics)
    with Recorder(tmp_path) as recorder:
        recorder.write(report)
    _, *entries, loss = str(report).split("  ")
    table = results_table(tmp_path, everything=True)
    titles, numbers = (list(map(str, table.columns[number].cells)) for number in (2, 3))
    assert set(entries) == {f"{title} 12.34 %" for title in TITLES[task]}
    assert loss == "loss 1.5000"
    assert {title.rstrip("↓↑ ") for title in titles} == TITLES[task]
    assert set(numbers) == {"12.34 %"}


def test_other_values_are_as_the_expert_reports_them():
    error = Metric("mse", "lower", "squared error", range=(0.0, math.inf), percent=False)
    scalars = [("mse", 12.5, 1), ("acc", math.nan, 1), ("own", 0.5, 1)]
    report = Report("t", "dev", scalars, metrics=(error, Metric("acc", "higher", "accuracy")))
    assert str(report) == "t dev  squared error 12.5  accuracy not a number  own 0.5000"
