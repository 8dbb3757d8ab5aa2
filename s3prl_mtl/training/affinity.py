"""How a step on one task changes the losses of the others.

Fifty et al., Efficiently Identifying Task Groupings for Multi-Task Learning, NeurIPS 2021 (TAG).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.config import Config
from s3prl_mtl.data.randomness import seed_all
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.training.microbatch import MicroBatch, MicroBatcher, OutOfMemory
from s3prl_mtl.training.pass_limit import PassLimit
from s3prl_mtl.training.probe import gradients_of, loss_of, unchanged
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.training.skips import SkipCounts

logger = logging.getLogger(__name__)

MOMENTA = ("exp_avg", "momentum_buffer")
"""Averages of earlier gradients, which are those of all tasks, in the states of optimizers."""


@dataclass(frozen=True)
class Affinity:
    """Affinities between tasks: `values[i, j]` of a step on task i to the loss of task j.

    Args:
        tasks: names of rows and columns.
        samples: one matrix for each batch, float64 (batches, tasks, tasks).
    """

    tasks: Sequence[str]
    samples: Tensor

    @property
    def values(self) -> Tensor:
        """The mean over the batches, (tasks, tasks); without those whose loss is 0."""
        return self.samples.nanmean(dim=0)

    @property
    def standard_errors(self) -> Tensor:
        """Of the means, (tasks, tasks); NaN for a single batch."""
        counts = self.samples.isfinite().sum(dim=0)
        squares = (self.samples - self.values).square().nansum(dim=0)
        return (squares / (counts - 1) / counts).sqrt().where(counts > 1, math.nan)

    def records(self) -> list[dict[str, Any]]:
        """An object for each pair: step_on, loss_of, affinity, standard_error; None if not
        finite."""
        values, errors = self.values.tolist(), self.standard_errors.tolist()
        return [
            {
                "step_on": step_on,
                "loss_of": loss_of,
                "affinity": _finite(values[i][j]),
                "standard_error": _finite(errors[i][j]),
            }
            for i, step_on in enumerate(self.tasks)
            for j, loss_of in enumerate(self.tasks)
        ]

    def groups(self, count: int) -> list[list[str]]:
        """The division into groups with the largest sum of affinities.

        Each task counts with the mean affinity to its loss of steps on the other tasks of its
        group, and with 0 if it is alone. All divisions are tried.

        Args:
            count: of groups, from 1 to the number of tasks.
        """
        values = self.values.nan_to_num(0.0).tolist()

        def total(groups: list[list[int]]) -> float:
            pairs = [(group, i, j) for group in groups for i, j in permutations(group, 2)]
            return math.fsum(values[i][j] / (len(group) - 1) for group, i, j in pairs)

        best = max(_divisions(len(self.tasks), count), key=total)
        return [[self.tasks[i] for i in group] for group in best]


def require_several_tasks(saved: RunCheckpoint, where: str) -> None:
    """Refuse a checkpoint of one task.

    Raises:
        UserError: names the task.
    """
    if len(saved.tasks) < 2:
        raise _no_affinity(f"The checkpoint has one task, {', '.join(saved.tasks)}.", where)


def _no_affinity(what: str, where: str) -> UserError:
    fix = "Give a run that trains an encoder on several tasks."
    return UserError(what, where=where, fix=fix, code="not-supported")


def open_run(saved: RunCheckpoint, config: Config, folder: Path, where: str) -> MultiTaskRunner:
    """The run of a checkpoint on one process, with its optimizer at the rate of the config.

    Args:
        saved: the checkpoint.
        config: of the run.
        folder: an empty folder for files of the experts.
        where: the checkpoint, for errors.

    Raises:
        UserError: a task or its corpus is not usable, or the tasks share no trained parameters.
    """
    config = {
        **config,
        "distributed": {"parallel": "data", "placement": None},
        "scheduler": None,  # At the end of a schedule the rate is 0.
    }
    runner = MultiTaskRunner(config, folder, resume=saved)
    run, optimizer = runner.run, runner.training_step.optimizer
    if not run.shared:
        raise _no_affinity("The tasks share no trained parameters: the encoder is frozen.", where)
    if saved.training is None:
        logger.warning("The checkpoint has no state of the optimizer: its step is a first one.")
        return runner
    rates = [group["lr"] for group in optimizer.param_groups]
    names = run.trained_parameters(runner.training_step.balancer)
    saved.training.optimizer.restore(optimizer, names)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        for key in MOMENTA:
            if isinstance(state.get(key), Tensor):
                state[key].zero_()
    return runner


def measure_affinity(runner: MultiTaskRunner, batches: int) -> Affinity:
    """Measure ``1 - loss_j(after a step on i) / loss_j(before)`` for all pairs of tasks.

    A step is one of the run's optimizer on the parameters that the tasks share, with the gradient
    of one task, clipped as in training. Both losses of a task are of the same training batch with
    the same dropout and SpecAugment, and its head is the same. The run is left as it was.

    Args:
        runner: from :func:`open_run`.
        batches: of each task.

    Raises:
        UserError: a batch does not fit into the memory of the GPU in any division.
    """
    run, step = runner.run, runner.training_step
    tasks = len(run.names)
    limit = PassLimit(runner.config.runner.max_pass_seconds)
    micro_batcher = MicroBatcher(World(), SkipCounts(run.names), tasks, limit)
    lookahead = _Lookahead(runner)
    samples = []
    run.set_training(True)
    for number in range(batches):
        draw = step.loaders.draw()
        # Other masks in each batch, the same ones in all passes of it.
        seed_all(derived_seed("affinity", run.seed, number))
        samples.append(micro_batcher.take(number + 1, [draw], lookahead.attempt))
        logger.info("Batch %d of %d.", number + 1, batches)
    step.loaders.close()
    return Affinity(list(run.names), torch.stack(samples))


class _Lookahead:
    """Steps on single tasks that are undone."""

    def __init__(self, runner: MultiTaskRunner) -> None:
        self.run = runner.run
        self.optimizer = runner.training_step.optimizer
        self.clipping = runner.config.runner.gradient_clipping

    def attempt(self, micro_batches: Sequence[MicroBatch], _dropped: frozenset[str]) -> Tensor:
        """The affinities of one batch of each task, (tasks, tasks).

        Raises:
            OutOfMemory: a micro-batch does not fit into memory.
        """
        try:
            return self._affinities(micro_batches)
        except torch.OutOfMemoryError:
            pass  # Its traceback holds the tensors of the pass.
        raise OutOfMemory

    def _affinities(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        parts = {
            name: [one for one in micro_batches if one.batches and one.batches[0].task == name]
            for name in self.run.names
        }
        before, after = [], []
        for name in self.run.names:
            loss, gradients = self._gradients(parts[name])
            before.append(loss)
            with self._step(gradients):
                after.append([self._loss(parts[other]) for other in self.run.names])
        losses = torch.tensor(before, dtype=torch.float64)
        changed = torch.tensor(after, dtype=torch.float64)
        return (1 - changed / losses).where(losses != 0, math.nan)

    def _gradients(self, parts: Sequence[MicroBatch]) -> tuple[float, list[Tensor | None]]:
        """The loss of a task, and its gradients of the shared parameters."""
        total = sum(batch.utterances for part in parts for batch in part.batches)
        value = 0.0
        sums: list[Tensor | None] = [None] * len(self.run.shared)
        with unchanged(self.run):
            for part in parts:
                loss = loss_of(self.run, part.batches, total)
                value += loss.item()
                for index, gradient in enumerate(gradients_of(self.run, loss)):
                    if gradient is not None:
                        held = sums[index]
                        sums[index] = gradient if held is None else held + gradient
        return value, sums

    @torch.no_grad()
    def _loss(self, parts: Sequence[MicroBatch]) -> float:
        total = sum(batch.utterances for part in parts for batch in part.batches)
        with unchanged(self.run):
            return math.fsum(loss_of(self.run, part.batches, total).item() for part in parts)

    @contextmanager
    def _step(self, gradients: Sequence[Tensor | None]) -> Iterator[None]:
        """Take a step on the shared parameters, and undo it on exit."""
        shared, optimizer = self.run.shared, self.optimizer
        weights = [parameter.detach().clone() for parameter in shared]
        states: dict[Tensor, Any] = {
            p: _copied(optimizer.state[p]) for p in shared if p in optimizer.state
        }
        try:
            for parameter, gradient in zip(shared, gradients, strict=True):
                if gradient is not None:
                    # In the layout of the parameter, which fused optimizers require: a gradient of
                    # `torch.autograd.grad` may be transposed in memory.
                    parameter.grad = torch.empty_like(parameter).copy_(gradient)
            nn.utils.clip_grad_norm_(shared, self.clipping)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield
        finally:
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for parameter, value in zip(shared, weights, strict=True):
                    parameter.copy_(value)
            for parameter in shared:
                optimizer.state.pop(parameter, None)
            optimizer.state.update(states)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _divisions(items: int, count: int) -> Iterator[list[list[int]]]:
    """Every division of the numbers below `items` into `count` groups."""

    def extend(groups: list[list[int]], item: int) -> Iterator[list[list[int]]]:
        if item == items:
            if len(groups) == count:
                yield groups
            return
        for place, group in enumerate(groups):
            yield from extend([*groups[:place], [*group, item], *groups[place + 1 :]], item + 1)
        if len(groups) < count:
            yield from extend([*groups, [item]], item + 1)

    return extend([], 0)
