"""One training step: a batch of every task, one update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from s3prl_mtl.balancing import Balancer, GradientBalancer
from s3prl_mtl.data import SAMPLE_RATE
from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.data.pool import LoaderPool
from s3prl_mtl.data.task_sampling import TasksOf, depends_on_sizes, task_sampling
from s3prl_mtl.distributed.gradients import GradientSum
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.nn import to_device
from s3prl_mtl.training.conflicts import ConflictMeter, Gramians
from s3prl_mtl.training.forward import forward
from s3prl_mtl.training.microbatch import MicroBatch, MicroBatcher
from s3prl_mtl.training.pass_limit import PassLimit
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.skips import SkipCounts
from s3prl_mtl.training.sync_step import StepSync
from s3prl_mtl.training.task import Records


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
        clipping: maximum joint norm of all gradients.
        accumulate: batches of every share of a task in a step.
        limit: of the audio of a forward and backward pass; by default none.
        num_workers: processes that read the batches of all tasks; 0 reads in this one.
        sampling: rule for the tasks of a step, as in :func:`task_sampling`.
        log_conflicts: compare the gradients of the tasks every so many steps; 0 for never.
    """

    def __init__(
        self,
        run: Run,
        balancer: Balancer,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        clipping: float,
        accumulate: int,
        limit: PassLimit | None = None,
        num_workers: int = 0,
        sampling: str = "all",
        log_conflicts: int = 0,
    ) -> None:
        self.run = run
        self.balancer = balancer
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clipping = clipping
        self.accumulate = accumulate
        self.micro_batcher = self._micro_batcher(run.world, run.skips, limit)
        streams = [task.stream for task in run.tasks.values()]
        self.loaders = LoaderPool(streams, num_workers, run.world.doing)
        self.sampling = sampling
        self._has_sampling = False
        self.conflicts = ConflictMeter(run, log_conflicts, accumulate)
        self._gramians: Gramians | None = None
        self.gradients = GradientSum((block.group, block.trained) for block in run.blocks())

    def take(self) -> StepReport:
        """Take one step on every rank.

        Raises:
            UserError: a task's loss or the gradient has not been finite for too many steps in a
                row, or a single utterance does not fit into the memory of the GPU.
        """
        self.run.set_training(True)
        if not self._has_sampling:
            tasks_of, per_step = self._read_sampling(), self.accumulate
            self.loaders.tasks_of = lambda number: tasks_of(number // per_step + 1)
            self._has_sampling = True
        self.loaders.number = self.run.step * self.accumulate
        draws = [self.loaders.draw() for _ in range(self.accumulate)]
        self._gramians = None
        if self._measures_conflicts and not isinstance(self.balancer, GradientBalancer):
            self._gramians = self.conflicts.measure(self.micro_batcher.divide(draws))
        sync, records = self.micro_batcher.take(self.run.step + 1, draws, self._attempt)
        return self._report(draws, sync, records)

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
        sync, records = self._begin(self.run.world, dropped)
        for micro_batch in micro_batches:
            is_last = micro_batch is micro_batches[-1]
            with self.gradients.overlapping() if is_last else nullcontext():
                self._backward(self._forward(micro_batch, sync, records), sync)
        self._sum_over_ranks(sync)
        if self._measures_conflicts and isinstance(self.balancer, GradientBalancer):
            self._gramians = self._compare_gradients(self.balancer, list(sync.losses))
        self.balancer.combine(sync.losses, self.run.shared, self.run.heads)
        self._update(self._clip())
        return sync, records

    def try_out(self) -> None:
        """Run one batch of every share, without an update. The ranks do not wait for each other.

        A rank with all tasks also combines them; the state of the balancer stays as it is.

        Raises:
            UserError: the loss of a task, or the combined gradient, is not finite.
        """

        def attempt(micro_batches: Sequence[MicroBatch], dropped: frozenset[str]) -> frozenset[str]:
            sync, records = self._begin(World(), dropped)
            for micro_batch in micro_batches:
                self._backward(self._forward(micro_batch, sync, records), sync)
            sync.share_losses()
            if len(sync.losses) == len(self.run.names):
                self.balancer.combine(sync.losses, self.run.shared, self.run.heads)
            return dropped

        self.run.set_training(True)
        micro_batcher = self._micro_batcher(World(), SkipCounts(self.run.names))
        state = deepcopy(self.balancer.state_dict())
        dropped = micro_batcher.take(1, [self.loaders.draw()], attempt)
        broken = [block.name for block in self.run.blocks() if not block.has_finite_gradients]
        self.balancer.load_state_dict(state)
        self.optimizer.zero_grad(set_to_none=True)
        if dropped:
            names = " and of ".join(sorted(dropped))
            raise UserError(
                f"The loss of {names} is not finite in the first batch of training.",
                where=f"the training split of {names}",
                fix="Check the weights that training starts from (-k, -i), the settings and the "
                "corpus of the task.",
                code="non-finite",
            )
        if broken:
            names = ", ".join(broken)
            raise UserError(
                f"The gradient of {names} is not finite in the first batch of training.",
                where=f"the gradient of {names}",
                fix="Try another balancer or other options of it (--balancer), or check the "
                "weights that training starts from (-k, -i).",
                code="non-finite",
            )

    def _read_sampling(self) -> TasksOf:
        """The rule for the tasks of a step; counts training utterances if it depends on them."""
        run = self.run
        sizes: dict[str, int | None] = dict.fromkeys(run.names)
        if depends_on_sizes(self.sampling):
            own = {name: task.training_utterances() for name, task in run.tasks.items()}
            for part in run.world.all_gather(own):
                sizes |= part
        return run.world.run_on_all_ranks(
            lambda: task_sampling(self.sampling, run.names, sizes, run.seed)
        )

    @property
    def _measures_conflicts(self) -> bool:
        return self.conflicts.is_due(self.run.step + 1)

    def _compare_gradients(
        self, balancer: GradientBalancer, tasks: Sequence[str]
    ) -> Gramians | None:
        """Compare the gradients of the step itself, of the tasks that are not dropped."""
        in_order = [task for task in self.run.names if task in tasks]
        rows = balancer.gradients_of(in_order)
        return None if rows is None else self.conflicts.from_rows(rows, in_order)

    def _micro_batcher(
        self, world: World, skips: SkipCounts, limit: PassLimit | None = None
    ) -> MicroBatcher:
        run = self.run
        own = [len(run.placement.tasks_of(rank)) for rank in range(run.world.size)]
        tasks = max(own) if self.balancer.one_task_at_a_time else None
        return MicroBatcher(world, skips, tasks, limit)

    def _begin(self, world: World, dropped: frozenset[str]) -> tuple[StepSync, dict[str, Records]]:
        """Discard what an earlier attempt at this step has left."""
        self.optimizer.zero_grad(set_to_none=True)
        self.balancer.begin_step()
        sync = StepSync(world, self.run.names, self.accumulate, dropped)
        return sync, {name: defaultdict(list) for name in self.run.tasks}

    def _forward(
        self, micro_batch: MicroBatch, sync: StepSync, records: Mapping[str, Records]
    ) -> dict[str, Tensor]:
        """Encode and run the heads; this rank's summand in the mean loss of each task."""
        run = self.run
        losses: list[Tensor] = []
        if not sync.out_of_memory:
            with run.world.doing("computing the forward pass"), sync.catching_memory_errors():
                batches = sync.batches_of(micro_batch)
                losses = forward(batches, run.tasks, run.encoder, run.specaug, records)
        return sync.share_counts(micro_batch, losses, run.stop_asked())

    def _backward(self, summands: Mapping[str, Tensor], sync: StepSync) -> None:
        with (
            self.run.world.doing("computing the backward pass"),
            sync.catching_memory_errors(),
        ):
            self.balancer.backward(summands, self.run.shared, self.run.heads)

    def _sum_over_ranks(self, sync: StepSync) -> None:
        self.gradients.finish()
        sync.share_losses()
        for partial_sum in self.balancer.partial_sums():
            self.run.world.sum(partial_sum)

    def _clip(self) -> Tensor:
        """Clip the gradients by their joint norm over all ranks, if it is finite; returns it, on
        the device."""
        world, device = self.run.world, self.run.encoder.device
        counted = [*self.run.counted, *(self.balancer.parameters() if world.is_lead else ())]
        gradients = [p.grad for p in counted if p.grad is not None]
        norm = to_device(nn.utils.get_total_norm(gradients), device)
        if world.size > 1:
            squares = world.sum(norm.double().square().reshape(1))
            norm = squares[0].sqrt().float()
        heads = chain(*self.run.heads.values())
        held = [*self.run.shared, *heads, *self.balancer.parameters()]
        # A norm of 0 leaves the gradients as they are.
        finite = norm.nan_to_num(nan=0.0, posinf=0.0)
        nn.utils.clip_grads_with_norm_(held, self.clipping, finite)
        return norm

    def _update(self, norm: Tensor) -> None:
        """Update with gradients of this norm; skip and count the step if it is not finite."""
        # Fused SGD would leave its momentum uninitialised if it skips the first step.
        skips_on_device = isinstance(self.optimizer, Adam) and all(
            group.get("fused") for group in self.optimizer.param_groups
        )
        if skips_on_device:
            # Torch's contract for gradient scalers: the kernels do nothing if this is 1.
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        value = norm.item()  # the CPU waits for the GPU here
        sources: list[str] = []
        if not math.isfinite(value):
            sources = [block.name for block in self.run.blocks() if not block.has_finite_gradients]
        elif not skips_on_device:
            self.optimizer.step()
        self.run.skips.count_norm(self.run.step + 1, value, sources)
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()

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
        return StepReport(losses, sync.stop, sync.samples / SAMPLE_RATE, self._gramians)
