"""The results of a run as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from s3prl_mtl.errors import UserError
from s3prl_mtl.expert import Metric
from s3prl_mtl.plugins import load_task
from s3prl_mtl.tracking import FEATURIZER, read_metrics
from s3prl_mtl.yaml_files import read_yaml

Key = tuple[str, str, str]

_ARROWS = {"lower": "↓", "higher": "↑"}


def results_table(run: Path, everything: bool = False) -> Table:
    """The first and the last value of a run for every task, as percent.

    Args:
        run: the folder of the run.
        everything: every evaluated split and every metric, instead of the headline metrics on the
            test splits (the other splits where a task's test split was not evaluated).

    Raises:
        UserError: the folder is not that of a run.
    """
    first: dict[Key, dict[str, Any]] = {}
    last: dict[Key, dict[str, Any]] = {}
    for entry in read_metrics(run):
        if entry["task"] not in (FEATURIZER, "run"):
            key = (entry["task"], entry["split"], entry["metric"])
            first.setdefault(key, entry)
            last[key] = entry

    table = Table("task", "split", "metric")
    for heading in ("before", "at step", "after", "at step"):
        table.add_column(heading, justify="right")
    for task in dict.fromkeys(task for task, _, _ in last):
        names = dict.fromkeys(name for owner, _, name in last if owner == task)
        metrics = _metrics_of(task, [name for name in names if name != "loss"])
        splits = list(dict.fromkeys(split for owner, split, _ in last if owner == task))
        for split in splits if everything else _test_splits(run, task, splits):
            for metric in metrics:
                key = (task, split, metric.name)
                if key not in last or not (everything or metric.headline or metric is metrics[0]):
                    continue
                before = first[key] if first[key]["step"] != last[key]["step"] else None
                table.add_row(
                    task,
                    split,
                    f"{metric.title} {_ARROWS.get(metric.better, '')}".rstrip(),
                    _percent(before["value"]) if before else "",
                    str(before["step"]) if before else "",
                    _percent(last[key]["value"]),
                    str(last[key]["step"]),
                )
    return table


def _metrics_of(task: str, logged: Sequence[str]) -> Sequence[Metric]:
    """The metrics that an expert declares; a stranger's are the names that it logged."""
    unknown = tuple(Metric(name, better="", title=name, headline=True) for name in logged)
    try:
        return getattr(load_task(task), "metrics", unknown)
    except UserError:
        # The plugin may have been uninstalled since; its numbers are still in the run's files.
        return unknown


def _test_splits(run: Path, task: str, evaluated: list[str]) -> list[str]:
    """The evaluated splits that are neither trained on nor used to select checkpoints."""
    path = run / "config.yaml"
    settings = read_yaml(path, "results").get(task, {}) if path.is_file() else {}
    train = settings.get("train_split", "train")
    dev = settings.get("dev_splits") or ["dev"]
    others = [split for split in evaluated if split != train]
    return [split for split in others if split not in dev] or others


def _percent(value: float | None) -> str:
    return "not a number" if value is None else f"{100 * value:.2f} %"
