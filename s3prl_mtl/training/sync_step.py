"""What the ranks agree on in the middle of a step, so that all of them do the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.distributed.world import World


class OutOfMemory(Exception):
    """The GPU of one of the ranks was too small for what it had to do at once."""


class DroppedLate(Exception):
    """A loss that is no number, in a step that has begun to count its task.

    Args:
        tasks: what the step is to be taken without, on all ranks.
    """

    def __init__(self, tasks: frozenset[str]) -> None:
        super().__init__(tasks)
        self.tasks = tasks


@dataclass
class Verdict:
    """What the ranks found in a forward pass, all of them the same.

    Args:
        utterances: of each task, over all ranks.
        losses: of each task, weighted by utterances.
        dropped: tasks with a loss that is no number.
        stop: a rank was asked to stop.
    """

    utterances: dict[str, float]
    losses: dict[str, float]
    dropped: set[str]
    stop: bool


def agree(
    world: World,
    names: Sequence[str],
    draw: Sequence[Batch],
    part: Sequence[Batch],
    losses: Sequence[Tensor],
    memory_is_short: bool,
    stop_asked: bool,
) -> Verdict:
    """Exchange what each rank found in its forward pass: one sum of a few numbers.

    Args:
        world: all ranks.
        names: the tasks of the run.
        draw: the batches of this rank that are one batch of every share of its tasks.
        part: those of them that went through the network just now.
        losses: of these; none where memory was short.
        memory_is_short: on this rank.
        stop_asked: of this rank.

    Raises:
        OutOfMemory: on all ranks, if memory was short on one.
    """
    row = {name: i for i, name in enumerate(names)}
    said = torch.zeros(len(names) * 3 + 2, dtype=torch.float64)
    utterances, weighted, not_finite = said[:-2].view(3, -1)
    for batch in draw:
        utterances[row[batch.task]] += batch.utterances
    # One copy from the GPU, not one for each loss.
    values = torch.stack([loss.detach().float() for loss in losses]).tolist() if losses else []
    for batch, value in zip(part, values, strict=not memory_is_short):
        if math.isfinite(value):
            weighted[row[batch.task]] += batch.utterances * value
        else:
            not_finite[row[batch.task]] += 1
    said[-2] = memory_is_short
    said[-1] = stop_asked
    world.sum(said)
    if said[-2]:
        raise OutOfMemory
    counts = dict(zip(names, utterances.tolist(), strict=True))
    return Verdict(
        utterances=counts,
        losses={
            name: value / max(counts[name], 1.0)
            for name, value in zip(names, weighted.tolist(), strict=True)
        },
        dropped={name for name in names if not_finite[row[name]]},
        stop=bool(said[-1]),
    )
