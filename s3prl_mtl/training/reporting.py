"""Turn the records of experts into metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_mtl.config.task_blocks import uses_tables
from s3prl_mtl.errors import SharedMistake, UserError
from s3prl_mtl.tasks.base import TaskExpert
from s3prl_mtl.tasks.metric import metrics_of
from s3prl_mtl.tracking.recorder import FEATURIZER, Report
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams import Featurizer


def report_split(
    task: Task,
    split: str,
    records: Mapping[str, list[Any]],
    step: int,
    batch_ids: Sequence[int],
    total_batches: int,
) -> Report:
    """Call an expert's `log_records` for a split.

    Args:
        records: of its `forward`.
        batch_ids: numbers of the batches in their epoch.
        total_batches: batches of the epoch; 0 if unknown.
    """
    report = Report(task.name, split, metrics=metrics_of(task.expert))
    if isinstance(task.expert, TaskExpert):
        report.conditions = stated_conditions(task.expert, task.expert.settings)
    save_names = task.expert.log_records(
        split,
        records=records,
        logger=report,
        global_step=step,
        batch_ids=batch_ids,
        total_batch_num=total_batches,
    )
    report.save_names = list(save_names or [])
    return report


def stated_conditions(expert: Any, downstream_expert: Mapping[str, Any]) -> str:
    """What the results of a task depend on; "" if its expert does not state it.

    Args:
        expert: or its class.
        downstream_expert: its settings.
    """
    state = getattr(expert, "conditions", None)
    stated = str(state(downstream_expert)) if callable(state) else ""
    data = "own data" if uses_tables({"downstream_expert": downstream_expert}) else ""
    return ", ".join(filter(None, (data, stated)))


def unscored_report(task: Task, split: str, step: int, problem: UserError) -> Report:
    """The report of a split that cannot be scored: every declared metric is NaN."""
    metrics = metrics_of(task.expert)
    scalars = [(metric.name, math.nan, step) for metric in metrics]
    # Errors of other packages may have attributes that cannot be sent to the first rank.
    plain = UserError(problem.what, where=problem.where, fix=problem.fix, code=problem.code)
    return Report(task.name, split, scalars, problem=plain, metrics=metrics)


def undefined_metrics(report: Report) -> UserError | None:
    """The metrics of an evaluation that are not a number, as an error; None if there are none."""
    undefined = [name for name, value in report.values.items() if math.isnan(value)]
    names = [report.title(name) for name in undefined if name != "loss"]
    if not names:
        return None
    return UserError(
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} undefined.",
        fix="See the log for the reason.",
        code="undefined-metric",
    )


def unscored_error(problems: Mapping[tuple[str, str], UserError]) -> SharedMistake:
    """One error for the splits that could not be scored, to end a command with.

    Args:
        problems: by task and split; at least one.
    """
    errors = [
        SharedMistake(
            f"{task} {split} cannot be scored: {problem.what}",
            where=problem.where or f"split {split!r} of {task}",
            fix=problem.fix,
            code=problem.code,
        )
        for (task, split), problem in problems.items()
    ]
    if len(errors) == 1:
        return errors[0]
    lines = "\n  ".join(map(str, errors))
    return SharedMistake(
        f"{len(errors)} splits cannot be scored; the results of the others are saved.\n  {lines}",
        code="several",
    )


def report_layer_weights(featurizer: Featurizer, num_hidden_states: int, step: int) -> Report:
    """The weight of each hidden state; `layer_0` is the input of the first layer."""
    values = featurizer.layer_weights()
    # A selection of some hidden states omits the first ones.
    first = num_hidden_states - len(values)
    scalars = [(f"layer_{first + i}", value, step) for i, value in enumerate(values)]
    return Report(FEATURIZER, "layer_weights", scalars)
