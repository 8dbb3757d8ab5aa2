"""One training step: a batch of every task, one update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from s3prl_mtl.balancing import Balancer
from s3prl_mtl.config.schema import RunnerConfig
from s3prl_mtl.data import SAMPLE_RATE
from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.data.pool import LoaderPool
from s3prl_mtl.data.workers import default_workers
from s3prl_mtl.distributed.gradients import GradientSum
from s3prl_mtl.distributed.world import World
from s3prl_mtl.training.conflicts import ConflictMeter, Gramians
from s3prl_mtl.training.forward import forward_pass
from s3prl_mtl.training.microbatch import MicroBatch, MicroBatcher
from s3prl_mtl.training.pass_limit import PassLimit
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.sync_step import StepSync
from s3prl_mtl.training.task import Records
from s3prl_mtl.training.update import clip_gradients, update_parameters


@dataclass
class StepReport:
    """The outcome of a step, the same on all ranks.

    Args:
        losses: of each task of the step, over all ranks; NaN where the task was dropped.
        stop: a rank was asked to stop.
        audio_seconds: of the batches of all ranks.
        gramians: of the gradients of the tasks before the update; None if they were not measured.
    """

    losses: dict[str, float]
    stop: bool
    audio_seconds: float = 0.0
    gramians: Gramians | None = None


class TrainingStep:
    """Take steps: draw, encode, run heads, balance, sum over ranks, clip, update.

    Args:
        run: the run.
        balancer: turns the losses of the tasks into gradients.
        optimizer: of the parameters of this rank.
        scheduler: learning-rate schedule of the optimizer, or None.
        settings: of the training loop.
    """

    def __init__(
        self,
        run: Run,
        balancer: Balancer,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        settings: RunnerConfig,
    ) -> None:
        self.run = run
        self.balancer = balancer
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.settings = settings
        streams = [task.stream for task in run.tasks.values()]
        workers = settings.num_workers
        if workers is None:
            workers = default_workers(run.world.local_size)
        self.loaders = LoaderPool(streams, workers, run.world.doing)
        own = [len(run.placement.tasks_of(rank)) for rank in range(run.world.size)]
        tasks = max(own) if balancer.one_task_at_a_time else None
        limit = PassLimit(settings.max_pass_seconds, run.encoder.device)
        self.micro_batcher = MicroBatcher(run.world, run.skips, tasks, limit)
        self.conflicts = ConflictMeter(run, balancer, settings)
        self.gradients = GradientSum((block.group, block.trained) for block in run.blocks())
        self._has_sampling = False

    def take(self) -> StepReport:
        """Take one step on every rank.

        Raises:
            UserError: a task's loss or the gradient has not been finite for too many steps in a
                row, or a single utterance does not fit into the memory of the GPU.
        """
        self.run.set_training(True)
        draws = self.draw()
        self.conflicts.measure_draws(self.micro_batcher, draws)
        sync, records = self.micro_batcher.take(self.run.step + 1, draws, self._attempt)
        return self._report(draws, sync, records)

    def draw(self) -> list[list[Batch]]:
        """The batches of this rank: for each draw one of every share of the tasks of the step."""
        draws = self.settings.gradient_accumulate_steps
        if not self._has_sampling:
            tasks_of = self.run.task_sampling(self.settings.sampling)
            self.loaders.tasks_of = lambda number: tasks_of(number // draws + 1)
            self._has_sampling = True
        self.loaders.number = self.run.step * draws
        return [self.loaders.draw() for _ in range(draws)]

    def _attempt(
        self, micro_batches: Sequence[MicroBatch], dropped: frozenset[str]
    ) -> tuple[StepSync, dict[str, Records]]:
        """Take the step in micro-batches.

        Returns:
            the synchronised outcome, and the records of this rank's experts.

        Raises:
            OutOfMemory: a micro-batch does not fit into memory.
            TasksDropped: the step must be repeated without these tasks.
        """
        run = self.run
        sync, records = self.begin(run.world, dropped)
        for micro_batch in micro_batches:
            is_last = micro_batch is micro_batches[-1]
            with self.gradients.overlapping() if is_last else nullcontext():
                self.backward(forward_pass(run, micro_batch, sync, records), sync)
        self.gradients.finish()
        sync.share_losses()
        for partial_sum in self.balancer.partial_sums():
            run.world.sum(partial_sum)
        self.conflicts.measure_balancer(sync.losses)
        self.balancer.combine(sync.losses, run.shared, run.heads)
        norm = clip_gradients(run, self.balancer, self.settings.gradient_clipping)
        update_parameters(run, self.optimizer, self.scheduler, norm)
        return sync, records

    def begin(self, world: World, dropped: frozenset[str]) -> tuple[StepSync, dict[str, Records]]:
        """Discard what an earlier attempt at this step has left."""
        self.optimizer.zero_grad(set_to_none=True)
        self.balancer.begin_step()
        draws = self.settings.gradient_accumulate_steps
        sync = StepSync(world, self.run.names, draws, dropped)
        return sync, {name: defaultdict(list) for name in self.run.tasks}

    def backward(self, summands: Mapping[str, Tensor], sync: StepSync) -> None:
        """Backpropagate this rank's summands in the mean losses of the tasks."""
        with self.run.world.doing("computing the backward pass"), sync.catching_memory_errors():
            self.balancer.backward(summands, self.run.shared, self.run.heads)

    def _report(
        self, draws: Sequence[Sequence[Batch]], sync: StepSync, records: Mapping[str, Records]
    ) -> StepReport:
        """Count the dropped tasks and keep the records of the others."""
        run = self.run
        run.skips.count_losses(run.step + 1, sync.dropped)
        for name, task in run.tasks.items():
            if name not in sync.dropped:
                task.keep(
                    records[name], [b.number for draw in draws for b in draw if b.task == name]
                )
        drawn = [name for name in run.names if name in sync.dropped or name in sync.losses]
        losses = {name: sync.losses.get(name, math.nan) for name in drawn}
        return StepReport(losses, sync.stop, sync.samples / SAMPLE_RATE, self.conflicts.gramians)
