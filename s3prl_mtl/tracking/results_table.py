"""The results of a run as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tasks.metric import Metric, metrics_of
from s3prl_mtl.tracking.tracker import FEATURIZER, read_metrics

Key = tuple[str, str, str]

_ARROWS = {"lower": "↓", "higher": "↑"}


def results_table(
    run: Path, everything: bool = False, config: Mapping[str, Any] | None = None
) -> Table:
    """The first and the last value of every metric of a run, by task.

    Fractions are shown as percent; metrics that an expert does not declare are shown unchanged.

    Args:
        run: the folder of the run.
        everything: every evaluated split and every metric, instead of the headline metrics on the
            test splits (the other splits where a task's test split was not evaluated).
        config: of the run, if it is not the folder's `config.yaml`.

    Raises:
        UserError: the folder is not that of a run.
    """
    config = _config_of(run) if config is None else config
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
        logged = [name for name in names if name != "loss"]
        metrics = _metrics_of(task, _block(config, task), logged)
        splits = list(dict.fromkeys(split for owner, split, _ in last if owner == task))
        for split in splits if everything else _test_splits(_block(config, task), splits):
            for metric in metrics:
                key = (task, split, metric.name)
                if key not in last or not (everything or metric.headline or metric is metrics[0]):
                    continue
                before = first[key] if first[key]["step"] != last[key]["step"] else None
                table.add_row(
                    task,
                    split,
                    f"{metric.title} {_ARROWS.get(metric.better, '')}".rstrip(),
                    _shown(metric, before["value"]) if before else "",
                    str(before["step"]) if before else "",
                    _shown(metric, last[key]["value"]),
                    str(last[key]["step"]),
                )
    return table


def _metrics_of(task: str, settings: Mapping[str, Any], logged: Sequence[str]) -> Sequence[Metric]:
    """The metrics that an expert declares, or else those that it logged."""
    # An undeclared metric may be a fraction, a percentage or anything else.
    unknown = tuple(
        Metric(name, better="", title=name, headline=True, percent=False) for name in logged
    )
    try:
        expert = load_task(task, settings.get("package"), folder=settings.get("folder"))
        return metrics_of(expert) or unknown
    except UserError:
        # The plugin may have been uninstalled since the run.
        return unknown


def _test_splits(settings: Mapping[str, Any], evaluated: list[str]) -> list[str]:
    """The evaluated splits that are neither trained on nor used to select checkpoints."""
    train = settings.get("train_split", "train")
    dev = settings.get("dev_splits") or ["dev"]
    others = [split for split in evaluated if split != train]
    return [split for split in others if split not in dev] or others


def _config_of(run: Path) -> Mapping[str, Any]:
    path = run / "config.yaml"
    return read_yaml(path, "results") if path.is_file() else {}


def _block(config: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """The block of a task in a config; empty if absent."""
    settings = config.get(task)
    return settings if isinstance(settings, Mapping) else {}


def _shown(metric: Metric, value: float | None) -> str:
    return "not a number" if value is None else metric.shown(value)
