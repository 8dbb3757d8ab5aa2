"""Clauses about records, metrics and the checkpoints that they select."""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.authoring.contract import Violated, clause
from s3prl_mtl.authoring.harness import TaskHarness
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.tasks.base import TaskExpert
from s3prl_mtl.tasks.best_checkpoint import first_score
from s3prl_mtl.tasks.metric import Metric, metrics_of
from s3prl_mtl.tracking.recorder import Report
from s3prl_mtl.training.reporting import report_split


@clause(
    11,
    "records",
    "`forward` records lists, which can be sent to other processes and have no tensor with a "
    "gradient.",
)
def records_lists(harness: TaskHarness) -> str:
    expert = harness.build()
    task = harness.task(expert)
    _check_training_records(harness, expert, task.train_split)
    expert.eval()
    keys: dict[str, None] = {}
    for split in dict.fromkeys([*task.dev_splits, *task.test_splits]):
        records: dict[str, list[Any]] = defaultdict(list)
        with torch.no_grad():
            for batch in harness.limited(harness.reader(expert, split, training=False), False):
                harness.loss(expert, split, batch, records)
        for key, values in records.items():
            if not isinstance(values, list):
                raise Violated(f"{split}: {key!r} is a {type(values).__name__}, not a list.")
            keys[key] = None
        try:
            pickle.loads(pickle.dumps(dict(records)))
        except Exception as error:
            raise Violated(f"{split}: its records cannot be pickled: {error}.") from error
    return f"{', '.join(keys) or 'none'}."


def _check_training_records(harness: TaskHarness, expert: Any, split: str | None) -> None:
    """Check that the records of training do not keep the graphs of their batches in memory."""
    if not split:
        return
    records: dict[str, list[Any]] = defaultdict(list)
    expert.train()
    harness.loss(expert, split, harness.first_batch(expert, split, training=True), records)
    for key, values in records.items():
        if any(tensor.requires_grad for tensor in _tensors(values)):
            raise Violated(
                f"{split}: {key!r} has a tensor with a gradient, which keeps the graph of every "
                f"batch in memory until the next log. Append a detached tensor: "
                f"`records[{key!r}].append(x.detach())`."
            )


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)


@clause(
    12,
    "metrics",
    "`log_records` reports every metric of `metrics` by `logger.add_scalar`, unless it is "
    "`optional`: finite, and within the metric's `range`, by default a fraction in [0, 1].",
    needs=(8, 11),
)
def reports_metrics(harness: TaskHarness) -> str:
    expert = harness.build()
    declared = _declared(expert)
    shown = []
    for report in harness.evaluate(expert, World()):
        if not report.scalars:
            raise Violated(f"{report.split}: nothing is reported.")
        for metric in declared:
            if metric.name not in report.values and not metric.optional:
                raise Violated(
                    f"{report.split}: {metric.name!r} is declared, but only "
                    f"{', '.join(report.values)} reported."
                )
        for name, value in report.values.items():
            if not math.isfinite(value):
                raise Violated(f"{report.split}: {name} is {value}.")
        for metric in declared:
            if metric.name in report.values:
                _check_range(report.split, metric, report.values[metric.name])
        shown.append(str(report).partition(" ")[2])
    ranges = [f"{metric.name} in {metric.interval}" for metric in declared]
    return f"{'; '.join(shown)}. Declared: {', '.join(ranges) or 'nothing'}."


def _declared(expert: Any) -> list[Metric]:
    """The metrics that an expert declares.

    Raises:
        Violated: a declaration is malformed, or a metric beyond 1 is declared as percent.
    """
    try:
        metrics = metrics_of(expert)
    except UserError as mistake:
        raise Violated(mistake.what) from mistake
    for metric in metrics:
        ends = [abs(float(end)) for end in metric.range]
        largest = max((end for end in ends if math.isfinite(end)), default=0.0)
        if metric.percent and largest > 1.0:
            raise Violated(
                f"{metric.name}: its range reaches {largest:g} and tables would show it as "
                f"{100 * largest:g} %. Report fractions, or declare `percent=False`."
            )
    return list(metrics)


def _check_range(split: str, metric: Metric, value: float) -> None:
    lowest, highest = metric.range
    if lowest <= value <= highest:
        return
    if (lowest, highest) == (0.0, 1.0):
        raise Violated(
            f"{split}: {metric.name} is {value:g}, outside [0, 1]. Report a fraction, or declare "
            "the metric's `range`."
        )
    raise Violated(
        f"{split}: {metric.name} is {value:g}, outside its declared range {metric.interval}."
    )


@clause(
    13,
    "checkpoints",
    "`log_records` returns the names of the checkpoints to keep, plain file names, or nothing. A "
    "`TaskExpert` keeps one at its first evaluation on dev with a value inside the range.",
    needs=(8, 11),
)
def names_checkpoints(harness: TaskHarness) -> str:
    expert = harness.build()
    measure = expert.log_records

    def log_records(split: str, **arguments: Any) -> Any:
        returned = measure(split, **arguments)
        if not isinstance(returned, list | tuple | None):
            raise Violated(f"{split}: it returns {returned!r:.60}, not a list of names.")
        return returned

    expert.log_records = log_records
    names: dict[str, None] = {}
    for report in harness.evaluate(expert, World()):
        for name in report.save_names:
            if not isinstance(name, str) or "/" in name or not name.endswith(".ckpt"):
                raise Violated(f"{report.split}: {name!r} is not the name of a checkpoint.")
            names[name] = None
        if isinstance(expert, TaskExpert) and report.split == expert.dev_split:
            _check_first_checkpoint(expert, report)
    return f"names: {', '.join(names) or 'none'}."


def _check_first_checkpoint(expert: TaskExpert, report: Report) -> None:
    """Check that the first value of the selecting metric earns a checkpoint."""
    metric = expert.selecting_metric
    value = report.values.get(metric.name)
    lowest, highest = metric.range
    if value is None or not lowest < value < highest or report.save_names:
        return
    start = first_score(type(expert))
    hint = "" if metric.improves(value, start) else f" `worst_score` is {start:g}."
    raise Violated(
        f"{report.split}: the first evaluation, with {metric.name} {value:g} ({metric.better} is "
        f"better), earns no checkpoint.{hint}"
    )


@clause(
    14, "empty records", "`log_records` accepts the records of no batch, and then reports nothing."
)
def accepts_empty_records(harness: TaskHarness) -> str:
    expert = harness.build()
    task = harness.task(expert)
    split = task.train_split or task.dev_splits[0]
    report = report_split(task, split, defaultdict(list), 1, [], 0)
    if report.values:
        raise Violated(f"without any batch it reports {report}.")
    return "nothing is reported."
