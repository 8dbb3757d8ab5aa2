"""Lines of the contract about records and metrics, on one process and on two."""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from s3prl_mtl.authoring.subject import Subject
from s3prl_mtl.authoring.verdicts import Broken, Check
from s3prl_mtl.expert import Metric
from s3prl_mtl.tracking import Report


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
    declared: Sequence[Metric] = getattr(expert, "metrics", ())
    shown = []
    for report in subject.evaluate([expert]):
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
    return f"{'; '.join(shown)}."


def _check_range(split: str, metric: Metric, value: float) -> None:
    if metric.better not in ("higher", "lower"):
        raise Broken(f"{metric.name}: better is {metric.better!r}, not 'higher' or 'lower'.")
    # Rates of errors count insertions too, and may be more than all there is.
    highest = 1.0 if metric.better == "higher" else math.inf
    if not 0.0 <= value <= highest:
        raise Broken(f"{split}: {metric.name} is {value:g}, which is no fraction.")


def names_checkpoints(subject: Subject) -> str:
    names: dict[str, None] = {}
    for report in subject.evaluate([subject.build()]):
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


def divides_evaluations(subject: Subject) -> str:
    one = subject.build(seed=3)
    two = [subject.build(seed=4), subject.build(seed=5)]
    for expert in two:
        expert.load_state_dict(one.state_dict())
    together, divided = subject.evaluate([one]), subject.evaluate(two)
    for alone, shared in zip(together, divided, strict=True):
        _compare(alone, shared)
    return f"the same on two processes: {', '.join(report.split for report in together)}."


def _compare(alone: Report, shared: Report) -> None:
    for name, value in alone.values.items():
        other = shared.values.get(name, math.nan)
        if not math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-9):
            raise Broken(f"{alone.split}: {name} is {value:g}, and {other:g} on two processes.")


MEASURING_CHECKS: dict[int, Check] = {
    11: records_lists,
    12: reports_metrics,
    13: names_checkpoints,
    14: copes_with_no_batch,
    15: divides_evaluations,
}
