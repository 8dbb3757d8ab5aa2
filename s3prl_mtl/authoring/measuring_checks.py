"""Lines of the contract about records and metrics."""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from typing import Any

import torch

from s3prl_mtl.authoring.harness import Subject
from s3prl_mtl.authoring.verdicts import Broken, Check
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.tasks.base import TaskExpert
from s3prl_mtl.tasks.metric import Metric, first_score, metrics_of
from s3prl_mtl.tracking.tracker import Report
from s3prl_mtl.training.reporting import report_split


def records_lists(subject: Subject) -> str:
    expert = subject.build()
    task = subject.task(expert)
    expert.eval()
    keys: dict[str, None] = {}
    for split in dict.fromkeys([*task.dev_splits, *task.test_splits]):
        records: dict[str, list[Any]] = defaultdict(list)
        with torch.no_grad():
            for batch in subject.some(subject.reader(expert, split, training=False), False):
                subject.loss(expert, split, batch, records)
        for key, values in records.items():
            if not isinstance(values, list):
                raise Broken(f"{split}: {key!r} is a {type(values).__name__}.")
            keys[key] = None
        try:
            pickle.loads(pickle.dumps(dict(records)))
        except Exception as error:
            raise Broken(f"{split}: what it records cannot be pickled: {error}.") from error
    return f"records: {', '.join(keys) or 'none'}."


def reports_metrics(subject: Subject) -> str:
    expert = subject.build()
    declared = _declared(expert)
    shown = []
    for report in subject.evaluate(expert, World()):
        if not report.scalars:
            raise Broken(f"{report.split}: nothing was reported.")
        for metric in declared:
            if metric.name not in report.values:
                raise Broken(
                    f"{report.split}: it declares {metric.name!r} and reports "
                    f"{', '.join(report.values)}."
                )
        for name, value in report.values.items():
            if not math.isfinite(value):
                raise Broken(f"{report.split}: {name} is {value}.")
        for metric in declared:
            _check_range(report.split, metric, report.values[metric.name])
        shown.append(str(report).partition(" ")[2])
    ranges = [f"{metric.name} in {metric.interval}" for metric in declared]
    return f"{'; '.join(shown)}. Declared: {', '.join(ranges) or 'nothing'}."


def _declared(expert: Any) -> list[Metric]:
    """The metrics that an expert declares, if what it declares has any sense."""
    try:
        metrics = metrics_of(expert)
    except UserError as mistake:
        raise Broken(mistake.what) from mistake
    for metric in metrics:
        ends = [abs(float(end)) for end in metric.range]
        largest = max((end for end in ends if math.isfinite(end)), default=0.0)
        if metric.percent and largest > 1.0:
            raise Broken(
                f"{metric.name}: it is declared to go up to {largest:g} in size and to be shown as "
                f"percent, so that tables would say {100 * largest:g} %. Report fractions, or "
                "declare `percent=False`."
            )
    return list(metrics)


def _check_range(split: str, metric: Metric, value: float) -> None:
    lowest, highest = metric.range
    if lowest <= value <= highest:
        return
    if (lowest, highest) == (0.0, 1.0):
        raise Broken(
            f"{split}: {metric.name} is {value:g}, which is no fraction in [0, 1]. What is none by "
            "nature declares its `range`."
        )
    raise Broken(
        f"{split}: {metric.name} is {value:g}, outside of its declared range {metric.interval}."
    )


def names_checkpoints(subject: Subject) -> str:
    expert = subject.build()
    measure = expert.log_records

    def log_records(split: str, **arguments: Any) -> Any:
        returned = measure(split, **arguments)
        if not isinstance(returned, list | tuple | None):
            raise Broken(f"{split}: it returns {returned!r:.60}, and not a list of names.")
        return returned

    expert.log_records = log_records
    names: dict[str, None] = {}
    for report in subject.evaluate(expert, World()):
        for name in report.save_names:
            if not isinstance(name, str) or "/" in name or not name.endswith(".ckpt"):
                raise Broken(f"{report.split}: {name!r} is no name of a checkpoint.")
            names[name] = None
        if isinstance(expert, TaskExpert) and report.split == expert.dev_split:
            _check_first(expert, report)
    return f"names: {', '.join(names) or 'none'}."


def _check_first(expert: TaskExpert, report: Report) -> None:
    """The first value that there is of the selecting metric is the best one so far."""
    metric = expert.selecting_metric
    value = report.values.get(metric.name)
    lowest, highest = metric.range
    if value is None or not lowest < value < highest or report.save_names:
        return
    start = first_score(type(expert))
    begun = "" if metric.improves(value, start) else f" `worst_score` is {start:g}."
    raise Broken(
        f"{report.split}: the first evaluation, with {metric.name} {value:g} ({metric.better} is "
        f"better), earns no checkpoint.{begun}"
    )


def copes_with_no_batch(subject: Subject) -> str:
    expert = subject.build()
    task = subject.task(expert)
    split = task.train_split or task.dev_splits[0]
    report = report_split(task, split, defaultdict(list), 1, [], 0)
    if report.values:
        raise Broken(f"of no batch it reports {report}.")
    return "nothing is reported."


MEASURING_CHECKS: dict[int, Check] = {
    11: records_lists,
    12: reports_metrics,
    13: names_checkpoints,
    14: copes_with_no_batch,
}
