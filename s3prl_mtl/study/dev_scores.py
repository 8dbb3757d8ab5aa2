"""The dev scores of a run, by task and step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.config import TaskConfig
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tasks.metric import Metric, metrics_of
from s3prl_mtl.tracking.recorder import read_metrics


@dataclass(frozen=True)
class DevScores:
    """The first metric of a task on its first dev split.

    Attributes:
        metric: it.
        split: it.
        values: by step; non-finite ones are left out.
    """

    metric: Metric
    split: str
    values: Mapping[int, float]

    @property
    def best_step(self) -> int:
        """The step of the best value, the first of equal ones."""
        sign = 1 if self.metric.better == "lower" else -1
        return min(self.values, key=lambda step: (sign * self.values[step], step))

    @property
    def best(self) -> float:
        """The best value."""
        return self.values[self.best_step]

    def gain(self, value: float, reference: float) -> float:
        """The relative gain of a value over a reference: positive is better."""
        difference = value - reference if self.metric.better == "higher" else reference - value
        return difference / abs(reference) if reference else difference


def read_dev_scores(run: Path, last_step: int | None = None) -> dict[str, DevScores]:
    """The dev scores of the tasks of a run, in its order; without tasks that have none.

    Args:
        run: its folder.
        last_step: leave out later ones.

    Raises:
        UserError: the folder is not that of a run, or a task declares no metric.
    """
    config = read_yaml(run / "config.yaml", str(run))
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for entry in read_metrics(run):
        # Records with a checkpoint are of later evaluations of best checkpoints.
        too_late = last_step is not None and entry["step"] > last_step
        if entry["value"] is not None and "checkpoint" not in entry and not too_late:
            key = entry["task"], entry["split"], entry["metric"]
            values.setdefault(key, {})[entry["step"]] = entry["value"]
    scores = {}
    for task in config["downstream"]:
        block = TaskConfig.from_plain(config.get(task) or {})
        metric = selecting_metric(task, block.package, block.folder)
        split = (block.dev_splits or ["dev"])[0]
        found = values.get((task, split, metric.name))
        if found:
            scores[task] = DevScores(metric, split, found)
    return scores


def best_dev_scores(runs: Iterable[Path]) -> dict[str, float]:
    """The best dev score of each task in runs, by the first run that has the task.

    Raises:
        UserError: a folder is not that of a run, or a task declares no metric.
    """
    found: dict[str, float] = {}
    for run in runs:
        for task, score in read_dev_scores(run).items():
            found.setdefault(task, score.best)
    return found


def selecting_metric(task: str, package: str | None = None, folder: str | None = None) -> Metric:
    """The metric that selects the checkpoints of a task: the first that its expert declares.

    Raises:
        UserError: it declares none.
    """
    declared = metrics_of(load_task(task, package, folder=folder))
    if not declared:
        raise UserError(
            f"The expert of {task} declares no metric, so that no value is known to be better.",
            where=f"metrics of {task}",
            fix='Declare it in the expert: metrics = (Metric("acc", "higher", "accuracy"),).',
            code="undefined-metric",
        )
    return declared[0]
