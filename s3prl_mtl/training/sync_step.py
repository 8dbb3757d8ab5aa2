"""Synchronise losses, seconds of audio, memory errors and stop requests over all ranks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.distributed.world import World
from s3prl_mtl.training.microbatch import MicroBatch, OutOfMemory, TasksDropped


class StepSync:
    """Losses, memory errors and stop requests of one attempt at a step, equal on all ranks.

    Args:
        world: all ranks.
        names: the tasks of the run.
        draws: batches of every share of a task in the step.
        dropped: tasks that the step is taken without.

    Attributes:
        losses: of each task that has taken part so far, the mean over ranks and micro-batches.
        dropped: tasks with a non-finite loss, and those that were given.
        stop: a rank was asked to stop.
        samples: of the micro-batches of all ranks so far.
    """

    def __init__(
        self, world: World, names: Sequence[str], draws: int, dropped: Collection[str]
    ) -> None:
        self.world = world
        self.names = list(names)
        self.draws = draws
        self.losses: dict[str, float] = {}
        self.dropped = set(dropped)
        self.stop = False
        self.samples = 0
        self._out_of_memory = False
        self._is_first = True

    @contextmanager
    def catching_memory_errors(self) -> Iterator[None]:
        """Catch an out-of-memory error of this rank, to exchange it later."""
        try:
            yield
        except torch.OutOfMemoryError:
            self._out_of_memory = True

    @property
    def out_of_memory(self) -> bool:
        """This rank ran out of memory."""
        return self._out_of_memory

    def share_losses(
        self, micro_batch: MicroBatch, losses: Sequence[Tensor], stop: bool
    ) -> dict[str, Tensor]:
        """Exchange the outcome of a forward pass: one sum of a few numbers.

        Args:
            micro_batch: of this rank.
            losses: of its batches; empty after an out-of-memory error.
            stop: this rank was asked to stop.

        Returns:
            for each task a scalar with gradient, the summand of this rank and micro-batch in the
            mean loss of the task over all ranks and micro-batches of the step.

        Raises:
            OutOfMemory: on all ranks, if one ran out of memory.
            TasksDropped: on all ranks, if a loss is not finite and earlier losses of its task are
                already part of the gradients.
        """
        row = {name: i for i, name in enumerate(self.names)}
        message = torch.zeros(len(self.names) * 3 + 3, dtype=torch.float64)
        utterances, weighted, not_finite = message[:-3].view(3, -1)
        message[-3] = sum(batch.samples for batch in micro_batch.batches)
        for batch in micro_batch.draw:
            utterances[row[batch.task]] += batch.utterances
        # A single copy from the GPU for all losses.
        values = torch.stack([loss.detach().float() for loss in losses]).tolist() if losses else []
        for batch, value in zip(micro_batch.batches, values, strict=not self._out_of_memory):
            if math.isfinite(value):
                weighted[row[batch.task]] += batch.utterances * value
            else:
                not_finite[row[batch.task]] += 1
        message[-2] = self._out_of_memory
        message[-1] = stop
        self.world.sum(message)
        if message[-2]:
            raise OutOfMemory
        self.stop |= bool(message[-1])
        self.samples += int(message[-3])
        dropped = self.dropped | {name for name in self.names if not_finite[row[name]]}
        if dropped != self.dropped and not self._is_first:
            raise TasksDropped(frozenset(dropped))
        self.dropped = dropped
        self._is_first = False
        totals = dict(zip(self.names, utterances.tolist(), strict=True))
        for name, value in zip(self.names, weighted.tolist(), strict=True):
            if totals[name] and name not in dropped:
                mean = value / totals[name]
                self.losses[name] = self.losses.get(name, 0.0) + mean / self.draws
        return self._summands(micro_batch.batches, losses, totals)

    def share_memory_errors(self) -> None:
        """Exchange the outcome of the backward passes.

        Raises:
            OutOfMemory: on all ranks, if one ran out of memory.
        """
        short = self.world.sum(torch.tensor([float(self._out_of_memory)]))
        if short[0]:
            raise OutOfMemory

    def _summands(
        self, batches: Sequence[Batch], losses: Sequence[Tensor], totals: dict[str, float]
    ) -> dict[str, Tensor]:
        """Weight each batch by its fraction of the utterances of all ranks."""
        summands: dict[str, Tensor] = {}
        for batch, loss in zip(batches, losses, strict=True):
            if batch.task not in self.dropped:
                weighted = loss * (batch.utterances / totals[batch.task])
                seen = summands.get(batch.task)
                summands[batch.task] = weighted if seen is None else seen + weighted
        return {
            name: summand / self.draws
            for name, summand in summands.items()
            if summand.requires_grad
        }
