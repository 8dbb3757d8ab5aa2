"""Synchronise losses, seconds of audio, memory errors and stop requests over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.distributed.world import World
from s3prl_mtl.nn import start_to_cpu
from s3prl_mtl.training.microbatch import MicroBatch, OutOfMemory, TasksDropped


@dataclass(frozen=True)
class _Pass:
    """A forward pass: its batches, the utterances of each task over all ranks, and a function that
    waits for the losses of the batches."""

    batches: Sequence[Batch]
    totals: Mapping[str, float]
    losses: Callable[[], Tensor]


class StepSync:
    """Losses, memory errors and stop requests of one attempt at a step, equal on all ranks.

    Args:
        world: all ranks.
        names: the tasks of the run.
        draws: batches of every share of a task in the step.
        dropped: tasks that the step is taken without.

    Attributes:
        losses: of each task that takes part, the mean over ranks and micro-batches.
        dropped: the tasks that were given.
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
        self.dropped = frozenset(dropped)
        self.stop = False
        self.samples = 0
        self._out_of_memory = False
        self._passes: list[_Pass] = []

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

    def batches_of(self, micro_batch: MicroBatch) -> list[Batch]:
        """The batches of a micro-batch without those of dropped tasks."""
        return [batch for batch in micro_batch.batches if batch.task not in self.dropped]

    def share_counts(
        self, micro_batch: MicroBatch, losses: Sequence[Tensor], stop: bool
    ) -> dict[str, Tensor]:
        """Exchange what the CPU knows of a forward pass, and start fetching its losses.

        Args:
            micro_batch: of this rank.
            losses: of its batches, as in :meth:`batches_of`; empty after an out-of-memory error.
            stop: this rank was asked to stop.

        Returns:
            for each task a scalar with gradient, the summand of this rank and micro-batch in the
            mean loss of the task over all ranks and micro-batches of the step.

        Raises:
            OutOfMemory: on all ranks, if one ran out of memory.
        """
        message = torch.zeros(len(self.names) + 3, dtype=torch.float64)
        for batch in micro_batch.draw:
            message[self.names.index(batch.task)] += batch.utterances
        message[-3] = sum(batch.samples for batch in micro_batch.batches)
        message[-2] = self._out_of_memory
        message[-1] = stop
        self.world.sum(message)
        if message[-2]:
            raise OutOfMemory
        self.stop |= bool(message[-1])
        self.samples += int(message[-3])
        batches = self.batches_of(micro_batch)
        totals = dict(zip(self.names, message[:-3].tolist(), strict=True))
        values = (
            torch.stack([loss.detach().float() for loss in losses]) if losses else torch.empty(0)
        )
        self._passes.append(_Pass(batches, totals, start_to_cpu(values)))
        return self._summands(batches, losses, totals)

    def share_losses(self) -> None:
        """Exchange the losses after the last backward pass: one sum of a few numbers.

        The GPU computes the backward passes meanwhile: only the forward passes are waited for.

        Raises:
            OutOfMemory: on all ranks, if one ran out of memory.
            TasksDropped: on all ranks, if a loss is not finite: it is part of the gradients.
        """
        message = torch.zeros(1 + 2 * len(self._passes) * len(self.names), dtype=torch.float64)
        weighted, not_finite = message[1:].view(2, len(self._passes), len(self.names))
        message[0] = self._out_of_memory
        for row, done in enumerate(self._passes):
            for batch, value in zip(done.batches, done.losses().tolist(), strict=True):
                column = self.names.index(batch.task)
                if math.isfinite(value):
                    weighted[row, column] += batch.utterances * value
                else:
                    not_finite[row, column] += 1
        self.world.sum(message)
        if message[0]:
            raise OutOfMemory
        broken = not_finite.any(dim=0).tolist()
        if any(broken):
            names = {name for name, is_broken in zip(self.names, broken, strict=True) if is_broken}
            raise TasksDropped(frozenset(self.dropped | names))
        for done, sums in zip(self._passes, weighted.tolist(), strict=True):
            for name, value in zip(self.names, sums, strict=True):
                if done.totals[name] and name not in self.dropped:
                    mean = value / done.totals[name]
                    self.losses[name] = self.losses.get(name, 0.0) + mean / self.draws

    def _summands(
        self, batches: Sequence[Batch], losses: Sequence[Tensor], totals: dict[str, float]
    ) -> dict[str, Tensor]:
        """Weight each batch by its fraction of the utterances of all ranks."""
        summands: dict[str, Tensor] = {}
        for batch, loss in zip(batches, losses, strict=True):
            weighted = loss * (batch.utterances / totals[batch.task])
            seen = summands.get(batch.task)
            summands[batch.task] = weighted if seen is None else seen + weighted
        return {
            name: summand / self.draws
            for name, summand in summands.items()
            if summand.requires_grad
        }
