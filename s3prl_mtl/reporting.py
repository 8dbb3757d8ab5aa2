"""From what experts recorded to the numbers of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_mtl.task import Task
from s3prl_mtl.tracking import FEATURIZER, Tracker
from s3prl_mtl.upstreams import Featurizer

logger = logging.getLogger(__name__)


def report_split(
    tracker: Tracker,
    task: Task,
    split: str,
    records: Mapping[str, list[Any]],
    step: int,
    batch_ids: Sequence[int],
    total_batches: int,
) -> tuple[dict[str, float], list[str]]:
    """Let an expert report the metrics of a split.

    Args:
        records: what its `forward` recorded.
        batch_ids: numbers of the batches in their epoch.
        total_batches: batches of the epoch; 0 where the loader does not say.

    Returns:
        the metrics, and the names of the checkpoints that they earn.
    """
    logger = tracker.for_split(task.name, split)
    save_names = task.expert.log_records(
        split,
        records=records,
        logger=logger,
        global_step=step,
        batch_ids=batch_ids,
        total_batch_num=total_batches,
    )
    return logger.values, list(save_names or [])


def report_layer_weights(
    tracker: Tracker, featurizer: Featurizer, num_hidden_states: int, step: int
) -> None:
    """Report how much each hidden state counts, `layer_0` being the first layer's input."""
    values = featurizer.layer_weights()
    if not values:
        return
    # A selection that leaves hidden states out leaves out the first ones.
    first = num_hidden_states - len(values)
    weights = {f"layer_{first + i}": value for i, value in enumerate(values)}
    for layer, weight in weights.items():
        tracker.record(FEATURIZER, "layer_weights", layer, weight, step)
    tracker.keep(FEATURIZER, "layer_weights", weights)
    shown = " ".join(f"{weight:.3f}" for weight in values)
    logger.info("step %d  weights of the layers from %d on: %s", step, first, shown)
