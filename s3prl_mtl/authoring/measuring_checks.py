"""Lines of the contract about records and metrics."""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from typing import Any

import torch

from s3prl_mtl.authoring.subject import Subject
from s3prl_mtl.authoring.verdicts import Broken, Check
from s3prl_mtl.distributed.world import World
from s3prl_mtl.expert import Metric


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
    metrics = []
    for declared in getattr(expert, "metrics", ()):
        try:
            metric = Metric.of(declared)
        except TypeError as error:
            raise Broken(f"`metrics` holds {declared!r:.60}, which is no Metric.") from error
        if metric.better not in ("higher", "lower"):
            raise Broken(f"{metric.name}: better is {metric.better!r}, not 'higher' or 'lower'.")
        try:
            lowest, highest = map(float, metric.range)
        except (TypeError, ValueError):
            lowest = highest = math.nan
        if not lowest < highest:
            raise Broken(
                f"{metric.name}: its range is {metric.range!r}, and not the lowest and the highest "
                "value that there can be."
            )
        largest = max((abs(end) for end in (lowest, highest) if math.isfinite(end)), default=0.0)
        if metric.percent and largest > 1.0:
            raise Broken(
                f"{metric.name}: it is declared to go up to {largest:g} in size and to be shown as "
                f"percent, so that tables would say {100 * largest:g} %. Report fractions, or "
                "declare `percent=False`."
            )
        metrics.append(metric)
    return metrics


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
    return f"names: {', '.join(names) or 'none'}."


def copes_with_no_batch(subject: Subject) -> str:
    expert = subject.build()
    task = subject.task(expert)
    split = task.train_split or task.dev_splits[0]
    report = subject.report(expert, split, {})
    if report.values:
        raise Broken(f"of no batch it reports {report}.")
    return "nothing is reported."


MEASURING_CHECKS: dict[int, Check] = {
    11: records_lists,
    12: reports_metrics,
    13: names_checkpoints,
    14: copes_with_no_batch,
}
