"""The results of runs as tables and records."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rich.table import Table

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tasks.metric import Metric, metrics_of
from s3prl_mtl.tracking.recorder import FEATURIZER, GRADIENTS, read_metrics

Key = tuple[str, str, str]

_ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True)
class Number:
    """A value of a metric, and the weights that it was measured with.

    Attributes:
        value: None if it is not finite.
        step: of the weights.
        checkpoint: their file in the folder of the run; None for weights in training.
        conditions: what the value depends on; None if the settings of the run say it.
    """

    value: float | None
    step: int
    checkpoint: str | None = None
    conditions: str | None = None

    @property
    def source(self) -> str:
        """The checkpoint, with the step unless its name has it; or the step alone.

        For narrow tables, a name such as `dev-best` of the file `ks/dev-best.ckpt`.
        """
        if self.checkpoint is None:
            return f"step {self.step}"
        name = PurePosixPath(self.checkpoint).name.removesuffix(".ckpt")
        return name if name.endswith(f"-{self.step}") else f"{name}, step {self.step}"


@dataclass(frozen=True)
class Result:
    """The last value of a metric on a split, and the first one if that is of another step."""

    task: str
    split: str
    metric: Metric
    last: Number
    first: Number | None

    @property
    def title(self) -> str:
        return f"{self.metric.title} {_ARROWS.get(self.metric.better, '')}".rstrip()

    def shown(self, number: Number | None) -> str:
        if number is None:
            return ""
        return self.metric.shown(math.nan if number.value is None else number.value)


def read_run(
    run: Path,
    everything: bool = False,
    config: Mapping[str, Any] | None = None,
    splits: Collection[tuple[str, str]] | None = None,
) -> list[Result]:
    """The results of a run, by task.

    Args:
        run: the folder of the run.
        everything: every evaluated split and every metric, instead of the headline metrics on the
            test splits (the other splits where a task's test split was not evaluated).
        config: of the run, if it is not the folder's `config.yaml`.
        splits: pairs of task and split; None for those of `everything`.

    Raises:
        UserError: the folder is not that of a run.
    """
    config = _config_of(run) if config is None else config
    first: dict[Key, Number] = {}
    last: dict[Key, Number] = {}
    for entry in read_metrics(run):
        if entry["task"] not in (FEATURIZER, GRADIENTS, "run"):
            key = (entry["task"], entry["split"], entry["metric"])
            number = Number(
                entry["value"], entry["step"], entry.get("checkpoint"), entry.get("conditions")
            )
            first.setdefault(key, number)
            last[key] = number
    results = []
    for task in dict.fromkeys(task for task, _, _ in last):
        names = dict.fromkeys(name for owner, _, name in last if owner == task)
        logged = [name for name in names if name != "loss"]
        metrics = _metrics_of(task, _block(config, task), logged)
        chosen = list(dict.fromkeys(split for owner, split, _ in last if owner == task))
        if splits is not None:
            chosen = [split for split in chosen if (task, split) in splits]
        elif not everything:
            chosen = _test_splits(_block(config, task), chosen)
        for split in chosen:
            for metric in metrics:
                key = (task, split, metric.name)
                if key not in last or not (everything or metric.headline or metric is metrics[0]):
                    continue
                before = first[key] if first[key].step != last[key].step else None
                results.append(Result(task, split, metric, last[key], before))
    return results


def results_table(
    run: Path,
    everything: bool = False,
    config: Mapping[str, Any] | None = None,
    splits: Collection[tuple[str, str]] | None = None,
) -> Table:
    """The first and the last value of every metric of a run, by task.

    The headings name the weights where they are the same for the whole column; otherwise, a column
    after the values does. Fractions are shown as percent; metrics that an expert does not declare
    are shown unchanged.

    Args:
        run, everything, config: as of `read_run`.
        splits: the pairs of task and split that were just evaluated: only their last values.

    Raises:
        UserError: the folder is not that of a run.
    """
    results = read_run(run, everything, config, splits)
    columns = [[result.task for result in results], [result.split for result in results]]
    columns.append([result.title for result in results])
    headings = ["task", "split", "metric"]
    befores = [None if splits is not None else result.first for result in results]
    for numbers in (befores, [result.last for result in results]):
        sources = {number.source for number in numbers if number is not None}
        if not sources:
            continue
        shown = [result.shown(n) for result, n in zip(results, numbers, strict=True)]
        columns.append(shown)
        if len(sources) == 1:
            headings += sources
        else:
            headings += ["before" if numbers is befores else "result", "of"]
            columns.append([number.source if number is not None else "" for number in numbers])
    return _table(headings, columns)


def comparison_table(runs: Sequence[Path], everything: bool = False) -> Table:
    """The last value of every metric of several runs, a column for each run.

    Raises:
        UserError: a folder is not that of a run.
    """
    names = _names(runs)
    rows: dict[Key, list[str]] = {}
    headings = ["task", "split", "metric"]
    for column, run in enumerate(runs):
        results = read_run(run, everything)
        sources = {result.last.source for result in results}
        for result in results:
            row = rows.setdefault((result.task, result.split, result.title), [""] * len(runs))
            row[column] = result.shown(result.last)
            if len(sources) > 1:
                row[column] += f" ({result.last.source})"
        headings.append(
            f"{names[column]}\n{next(iter(sources))}" if len(sources) == 1 else names[column]
        )
    cells = [[*key, *row] for key, row in rows.items()]
    return _table(headings, list(map(list, zip(*cells, strict=True))) or [[] for _ in headings])


def result_records(runs: Sequence[Path], everything: bool = False) -> list[dict[str, Any]]:
    """The last value of every metric of runs: run, task, split, metric, value, step, checkpoint.

    Values are as the expert reports them: fractions, not percent; None if not finite.

    Raises:
        UserError: a folder is not that of a run.
    """
    return [
        {
            "run": str(run),
            "task": result.task,
            "split": result.split,
            "metric": result.metric.name,
            "value": result.last.value,
            "step": result.last.step,
            "checkpoint": result.last.checkpoint,
        }
        for run in runs
        for result in read_run(run, everything)
    ]


def _table(headings: Sequence[str], columns: Sequence[Sequence[str]]) -> Table:
    """A table that wraps within 60 columns: no cell is cut off."""
    table = Table(padding=(0, 1, 0, 0), pad_edge=False)
    for number, heading in enumerate(headings):
        is_text = number < 3 or heading == "of"
        table.add_column(
            heading,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=heading == "split",
        )
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


def _names(runs: Sequence[Path]) -> list[str]:
    """The names of folders; whole paths where names are equal."""
    short = [run.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


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
