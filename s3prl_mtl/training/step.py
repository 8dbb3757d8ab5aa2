"""One training step: a batch of every task, one update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from s3prl_mtl.balancing import Balancer
from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.distributed.gradients import GradientSum
from s3prl_mtl.training.forward import forward
from s3prl_mtl.training.microbatch import MicroBatch, MicroBatcher
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.sync_step import StepSync

Records = dict[str, dict[str, list[Any]]]
"""The records of each task's expert."""


@dataclass
class StepReport:
    """The outcome of a step, the same on all ranks.

    Args:
        losses: of each task of the run, over all ranks; NaN where the task was dropped.
        stop: a rank was asked to stop.
    """

    losses: dict[str, float]
    stop: bool


class TrainingStep:
    """Take steps: draw, encode, run heads, balance, sum over ranks, clip, update.

    Args:
        run: the run.
        balancer: turns the losses of the tasks into gradients.
        optimizer: of the parameters of this rank.
        scheduler: learning-rate schedule of the optimizer, or None.
        clipping: maximum joint norm of all gradients.
        accumulate: batches of every share of a task in a step.
    """

    def __init__(
        self,
        run: Run,
        balancer: Balancer,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        clipping: float,
        accumulate: int,
    ) -> None:
        self.run = run
        self.balancer = balancer
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clipping = clipping
        self.accumulate = accumulate
        self.micro_batcher = MicroBatcher(run.world, run.skips)
        blocks = [
            (group, [p for p in parameters if p.requires_grad])
            for _, group, parameters in run.parameters()
        ]
        self.shared = blocks[0][1]
        self.heads = [parameter for _, parameters in blocks[1:] for parameter in parameters]
        self.gradients = GradientSum(blocks)
        # All ranks hold the balancer's parameters and compute the same gradients of them.
        blocks.append((run.world, list(balancer.parameters())))
        self._held = [parameter for _, parameters in blocks for parameter in parameters]
        # Each gradient counts once in the norm, however many ranks hold it.
        self._counted = [p for group, parameters in blocks if group.is_lead for p in parameters]

    def take(self) -> StepReport:
        """Take one step on every rank.

        Raises:
            UserError: a task's loss or the gradient has not been finite for too many steps in a
                row, or a single utterance does not fit into the memory of the GPU.
        """
        run = self.run
        run.set_training(True)
        draws = [self.draw() for _ in range(self.accumulate)]
        sync, records = self.micro_batcher.take(run.step + 1, draws, self._attempt)
        run.skips.count_losses(run.step + 1, sync.dropped)
        for name, task in run.tasks.items():
            if name not in sync.dropped:
                numbers = [b.number for draw in draws for b in draw if b.task == name]
                task.keep(records[name], numbers)
        losses = {n: math.nan if n in sync.dropped else sync.losses.get(n, 0.0) for n in run.names}
        return StepReport(losses, sync.stop)

    def draw(self) -> list[Batch]:
        """The next batch of every share of every task of this rank."""
        batches = []
        for name, task in self.run.tasks.items():
            with self.run.world.doing(f"reading a batch of {name}"):
                batches += task.stream.next_round()
        return batches

    def _attempt(
        self, micro_batches: Sequence[MicroBatch], dropped: frozenset[str]
    ) -> tuple[StepSync, Records]:
        """Take the step in micro-batches.

        Returns:
            the synchronised outcome, and the records of this rank's experts.

        Raises:
            OutOfMemory: a micro-batch does not fit into memory.
            TasksDropped: the step must be repeated without these tasks.
        """
        run, world = self.run, self.run.world
        self.optimizer.zero_grad(set_to_none=True)
        self.balancer.begin_step()
        records: Records = {name: defaultdict(list) for name in run.tasks}
        sync = StepSync(world, run.names, self.accumulate, dropped)
        for number, micro_batch in enumerate(micro_batches, 1):
            losses = []
            if not sync.out_of_memory:
                with world.doing("computing the forward pass"), sync.catching_memory_errors():
                    losses = forward(
                        micro_batch.batches, run.tasks, run.encoder, run.specaug, records
                    )
            summands = sync.share_losses(micro_batch, losses, run.stop_asked())
            is_last = number == len(micro_batches)
            overlapping = self.gradients.overlapping if is_last else nullcontext
            with (
                world.doing("computing the backward pass"),
                sync.catching_memory_errors(),
                overlapping(),
            ):
                self.balancer.backward(summands, self.shared, self.heads)
            del losses, summands
        self.gradients.finish()
        sync.share_memory_errors()
        for partial_sum in self.balancer.partial_sums():
            world.sum(partial_sum)
        self.balancer.combine(sync.losses, self.shared)
        self._update()
        return sync, records

    def _update(self) -> None:
        """Clip the gradients by their joint norm and update, unless the norm is not finite."""
        run = self.run
        norm = nn.utils.get_total_norm([p.grad for p in self._counted if p.grad is not None])
        if run.world.size > 1:
            squares = run.world.sum(torch.tensor([float(norm) ** 2], dtype=torch.float64))
            norm = squares[0].sqrt().float().to(norm.device)
        if math.isfinite(norm):
            nn.utils.clip_grads_with_norm_(self._held, self.clipping, norm)
            self.optimizer.step()
            sources = []
        else:
            sources = [name for name, _, held in run.parameters() if not _all_finite(held)]
        run.skips.count_norm(run.step + 1, float(norm), sources)
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()

    def try_out(self) -> None:
        """Run one batch of every share, without an update."""
        run = self.run
        run.set_training(True)
        records: Records = defaultdict(lambda: defaultdict(list))
        batches = self.draw()
        losses = forward(batches, run.tasks, run.encoder, run.specaug, records)
        by_task: dict[str, Tensor] = {}
        for batch, loss in zip(batches, losses, strict=True):
            if loss.requires_grad:
                by_task[batch.task] = by_task.get(batch.task, 0) + loss
        self.balancer.begin_step()
        self.balancer.backward(by_task, self.shared, self.heads)
        self.optimizer.zero_grad(set_to_none=True)


def _all_finite(parameters: Sequence[nn.Parameter]) -> bool:
    return all(p.grad is None or bool(p.grad.isfinite().all()) for p in parameters)
