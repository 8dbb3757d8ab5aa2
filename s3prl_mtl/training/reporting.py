"""Turn the records of experts into metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_mtl.tracking.tracker import FEATURIZER, Report
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
    report = Report(task.name, split)
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


def report_layer_weights(featurizer: Featurizer, num_hidden_states: int, step: int) -> Report:
    """The weight of each hidden state; `layer_0` is the input of the first layer."""
    values = featurizer.layer_weights()
    # A selection of some hidden states omits the first ones.
    first = num_hidden_states - len(values)
    scalars = [(f"layer_{first + i}", value, step) for i, value in enumerate(values)]
    return Report(FEATURIZER, "layer_weights", scalars)
