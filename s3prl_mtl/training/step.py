"""One training step: a batch of every task, one update, agreed on by all ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from s3prl_mtl.balancing import sum_of_losses
from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.distributed.gradients import GradientSum
from s3prl_mtl.distributed.world import Group, World
from s3prl_mtl.errors import SharedMistake
from s3prl_mtl.nn import SpecAugment
from s3prl_mtl.training.microbatch import forward, split_batches
from s3prl_mtl.training.skips import SkipCounts
from s3prl_mtl.training.sync_step import DroppedLate, OutOfMemory, Verdict, agree
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder


@dataclass
class StepReport:
    """What came of a step.

    Args:
        losses: of each task of the run, over all ranks; NaN where it was dropped.
        stop: a rank was asked to stop; all ranks read the same.
    """

    losses: dict[str, float]
    stop: bool


class TrainingStep:
    """Takes steps: draw, forward, losses, backward, sum of gradients, clip, update.

    What the ranks must agree on travels in three messages of a few numbers: after each forward
    pass (utterances and losses of every task, whether memory was short, whether to stop), after
    the backward pass (which parameters were used), and before the update (the gradient's norm).

    Args:
        encoder: encoder and featurizer.
        tasks: those of this rank.
        names: those of the run, the same on all ranks.
        world: all ranks.
        groups: the ranks that share each task of this rank.
        optimizer, scheduler: of what this rank holds.
        clipping: bound of the joint norm of all gradients.
        accumulate: batches of every task in a step.
        specaug: on the features of every task, or None.
        skips: counts what was skipped and dropped.
        stop_asked: whether this rank was asked to stop.
    """

    def __init__(
        self,
        encoder: SharedEncoder,
        tasks: Mapping[str, Task],
        names: Sequence[str],
        world: World,
        groups: Mapping[str, Group],
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        clipping: float,
        accumulate: int,
        specaug: SpecAugment | None,
        skips: SkipCounts,
        stop_asked: Callable[[], bool],
    ) -> None:
        self.encoder = encoder
        self.tasks = tasks
        self.names = list(names)
        self.world = world
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clipping = clipping
        self.accumulate = accumulate
        self.specaug = specaug
        self.skips = skips
        self.stop_asked = stop_asked
        shared = [*encoder.upstream.parameters(), *encoder.featurizer.parameters()]
        heads = [(groups[name], list(task.expert.parameters())) for name, task in tasks.items()]
        self.gradients = GradientSum([(world, shared), *heads])
        # Each gradient counts once in the norm, however many ranks hold it.
        self._counted = [
            parameter
            for group, parameters in [(world, shared), *heads]
            if group.is_lead
            for parameter in parameters
            if parameter.requires_grad
        ]
        self._held = [p for _, ps in [(world, shared), *heads] for p in ps if p.requires_grad]

    def take(self) -> StepReport:
        """Take one step on every rank.

        Raises:
            UserError: a task, or the gradient, has not been finite for too many steps in a row;
                the memory of the GPU is too small for a single utterance.
        """
        self.set_training(True)
        draws = [self.draw() for _ in range(self.accumulate)]
        parts = 1
        without: frozenset[str] = frozenset()
        while True:
            try:
                return self._attempt(draws, parts, without)
            except OutOfMemory:
                parts = self._more_parts(draws, parts)
            except DroppedLate as late:
                without = late.tasks

    def set_training(self, training: bool) -> None:
        self.encoder.set_training(training)
        for task in self.tasks.values():
            task.expert.train(training)

    def draw(self) -> list[Batch]:
        """The next batch of every share of every task of this rank."""
        batches = []
        for name, task in self.tasks.items():
            with self.world.doing(f"reading a batch of {name}"):
                batches += task.stream.next_round()
        return batches

    def try_out(self) -> None:
        """One batch of every share through everything but the update."""
        self.set_training(True)
        records: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        batches = self.draw()
        losses = forward(batches, self.tasks, self.encoder, self.specaug, records)
        by_number = {str(i): loss for i, loss in enumerate(losses) if loss.requires_grad}
        if by_number:
            sum_of_losses(by_number).backward()
        self.optimizer.zero_grad(set_to_none=True)

    # ------------------------------------------------------------------- inside a step

    def _attempt(
        self, draws: Sequence[list[Batch]], parts: int, without: frozenset[str]
    ) -> StepReport:
        """The step with each draw cut into parts that go through the network one by one.

        Raises:
            OutOfMemory: memory is too short for that.
            DroppedLate: a task has to be left out that an earlier part has already counted.
        """
        self.optimizer.zero_grad(set_to_none=True)
        records: dict[str, dict[str, list[Any]]] = {name: defaultdict(list) for name in self.tasks}
        losses = dict.fromkeys(self.names, 0.0)
        dropped = set(without)
        stop = False
        memory_is_short = False
        todo = [(draw, part) for draw in draws for part in split_batches(draw, parts)]
        for number, (draw, part) in enumerate(todo, 1):
            found: list[Tensor] = []
            if not memory_is_short:
                with self.world.doing("computing the forward pass"):
                    try:
                        found = forward(part, self.tasks, self.encoder, self.specaug, records)
                    except torch.OutOfMemoryError:
                        memory_is_short = True
            verdict = agree(
                self.world, self.names, draw, part, found, memory_is_short, self.stop_asked()
            )
            verdict.dropped |= dropped
            if number > 1 and verdict.dropped > dropped:
                raise DroppedLate(frozenset(verdict.dropped))
            total = self._total(part, found, verdict)
            overlapping = self.gradients.overlapping if number == len(todo) else nullcontext
            with self.world.doing("computing the backward pass"), overlapping():
                try:
                    if total is not None:
                        total.backward()
                except torch.OutOfMemoryError:
                    # The others count on this rank's part in the sums: it tells them after these.
                    memory_is_short = True
            del found, total
            for name in self.names:
                losses[name] += verdict.losses[name] / len(draws)
            dropped = verdict.dropped
            stop |= verdict.stop
        self.gradients.finish()
        self._update(memory_is_short)
        self.skips.note_losses(dropped)
        for name, task in self.tasks.items():
            if name in dropped:
                continue
            task.keep(records[name], [p.number for draw in draws for p in draw if p.task == name])
        return StepReport({n: math.nan if n in dropped else v for n, v in losses.items()}, stop)

    def _total(
        self, part: Sequence[Batch], losses: Sequence[Tensor], verdict: Verdict
    ) -> Tensor | None:
        """This rank's summand of the loss: each batch counts by its part of the utterances."""
        by_task: dict[str, Tensor] = {}
        for batch, loss in zip(part, losses, strict=False):
            if batch.task not in verdict.dropped:
                share = loss * (batch.utterances / verdict.utterances[batch.task])
                seen = by_task.get(batch.task)
                by_task[batch.task] = share if seen is None else seen + share
        by_task = {name: loss for name, loss in by_task.items() if loss.requires_grad}
        return sum_of_losses(by_task) / self.accumulate if by_task else None

    def _update(self, memory_is_short: bool) -> None:
        gradients = [p.grad for p in self._counted if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.world.size > 1:
            said = torch.tensor([float(norm) ** 2, memory_is_short], dtype=torch.float64)
            self.world.sum(said)
            norm, memory_is_short = said[0].sqrt().float().to(norm.device), bool(said[1])
        if memory_is_short:
            raise OutOfMemory
        if math.isfinite(norm):
            nn.utils.clip_grads_with_norm_(self._held, self.clipping, norm)
            self.optimizer.step()
        culprits = [] if math.isfinite(norm) else self._not_finite()
        self.skips.note_norm(float(norm), culprits)
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()

    def _not_finite(self) -> list[str]:
        """The parts of the model whose gradients are not finite, in words."""
        modules = {
            "the encoder": self.encoder.upstream,
            "the featurizer": self.encoder.featurizer,
        }
        modules |= {f"the head of {name}": task.expert for name, task in self.tasks.items()}
        return [
            what
            for what, module in modules.items()
            if not all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
        ]

    def _more_parts(self, draws: Sequence[list[Batch]], parts: int) -> int:
        """Twice the parts, if that makes the largest one smaller on any rank.

        Raises:
            UserError: they are as small as they can be.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if self.encoder.device.type == "cuda":
            torch.cuda.empty_cache()
        now, then = (_largest_part(draws, count) for count in (parts, 2 * parts))
        lines = self.world.all_gather((now > then, now))
        if not any(can_be_smaller for can_be_smaller, _ in lines):
            raise SharedMistake(
                "The memory of the GPU is too small for what cannot be parted further: at most "
                f"{max(size for _, size in lines)} utterances at once.",
                where=f"step {self.skips.step}",
                fix="Take very long utterances out of the corpus, or use --precision bf16, "
                "--freeze_upstream or a smaller encoder.",
            )
        self.skips.note_retry(2 * parts)
        return 2 * parts


def _largest_part(draws: Sequence[list[Batch]], parts: int) -> int:
    """The most utterances that go through the network at once."""
    sizes = [
        sum(batch.utterances for batch in part)
        for draw in draws
        for part in split_batches(draw, parts)
    ]
    return max(sizes, default=0)
