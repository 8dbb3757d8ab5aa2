"""Conflicts between tasks: inner products of their gradients, by group of layers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from s3prl_mtl.balancing import Balancer, GradientBalancer
from s3prl_mtl.config.schema import RunnerConfig
from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.training.microbatch import MicroBatch, MicroBatcher, by_task
from s3prl_mtl.training.probe import gradients_of, loss_of, unchanged
from s3prl_mtl.training.run import Run
from s3prl_mtl.upstreams import Upstream

logger = logging.getLogger(__name__)

ALL = "all"
LAYER_GROUPS = 4
"""The layers of an encoder are divided into so many groups, or fewer."""


@dataclass(frozen=True)
class Gramians:
    """Inner products of the tasks' gradients of their mean losses, by group of layers.

    Args:
        tasks: names of rows and columns.
        groups: for each group of layers float64 (tasks, tasks).
    """

    tasks: Sequence[str]
    groups: Mapping[str, Tensor]

    def of(self, tasks: Sequence[str]) -> Gramians:
        """Those of some tasks, in their order."""
        rows = [self.tasks.index(task) for task in tasks]
        return Gramians(tasks, {name: g[rows][:, rows] for name, g in self.groups.items()})

    def norms(self, group: str) -> Tensor:
        """The norm of each task's gradient, (tasks,)."""
        return self.groups[group].diagonal().sqrt()

    def cosines(self, group: str) -> Tensor:
        """The cosine of each pair, (tasks, tasks); NaN where a gradient is 0 or not finite."""
        norms = self.norms(group)
        return self.groups[group] / torch.outer(norms, norms)

    def scalars(self, group: str) -> dict[str, float]:
        """The numbers to log: `conflicting_pairs` is the share of the pairs with a cosine."""
        cosines = self.cosines(group)
        pairs = {
            f"cosine_{a}-{b}": float(cosines[i, j])
            for (i, a), (j, b) in combinations(enumerate(self.tasks), 2)
        }
        defined = [value for value in pairs.values() if value == value]
        share = sum(value < 0 for value in defined) / len(defined) if defined else float("nan")
        norms = zip(self.tasks, self.norms(group).tolist(), strict=True)
        return {
            "conflicting_pairs": share,
            **{f"norm_{task}": norm for task, norm in norms},
            **pairs,
        }


class ConflictMeter:
    """Measure the gradients of the tasks in the steps of a run.

    A balancer of gradients has them after the passes of a step. For others they are measured on
    the batches of the step, before it. The training is the same to the last bit with and without
    that. A pass has the batches of one task in a micro-batch of the step, so that it needs no more
    memory on a GPU than the step. The gradients of the tasks of a rank are kept in the memory of
    the CPU, float32 (tasks, shared values); they are summed over the ranks one parameter at a time.

    Args:
        run: the run.
        balancer: of its steps.
        settings: of the training loop: how often to measure.

    Attributes:
        gramians: of the current step, the same on all ranks; None if they were not measured.
    """

    def __init__(self, run: Run, balancer: Balancer, settings: RunnerConfig) -> None:
        self.run = run
        self.balancer = balancer
        self.every = settings.log_conflicts
        self.accumulate = settings.gradient_accumulate_steps
        self.gramians: Gramians | None = None
        self._warned = False

    @property
    def has_pairs(self) -> bool:
        """Whether several tasks share trained parameters."""
        return len(self.run.names) > 1 and bool(self.run.shared)

    @property
    def _is_due(self) -> bool:
        """Whether to measure in the current step."""
        return self.every > 0 and (self.run.step + 1) % self.every == 0 and self.has_pairs

    def measure_draws(self, batcher: MicroBatcher, draws: Sequence[Sequence[Batch]]) -> None:
        """Measure before a step on its batches, if it is due; every rank must call it."""
        self.gramians = None
        if self._is_due and not isinstance(self.balancer, GradientBalancer):
            self.gramians = self._measure(batcher.divide(draws))

    def measure_balancer(self, tasks: Collection[str]) -> None:
        """Measure the gradients that the balancer has summed over the ranks, if the step is due.

        Args:
            tasks: those that take part in the step.
        """
        if self._is_due and isinstance(self.balancer, GradientBalancer):
            in_order = [task for task in self.run.names if task in tasks]
            rows = self.balancer.gradients_of(in_order)
            self.gramians = None if rows is None else self._from_rows(rows, in_order)

    def _measure(self, micro_batches: Sequence[MicroBatch]) -> Gramians | None:
        """Measure on micro-batches of this rank.

        Returns:
            the same on all ranks, of the tasks that take part in the step; None if a rank has too
            little memory.
        """
        world = self.run.world
        totals = self._utterances(micro_batches)
        rows: dict[str, list[Tensor]] = {}
        buffer: Tensor | None = None
        with (
            world.doing("comparing the gradients of the tasks"),
            unchanged(self.run),
            suppress(torch.OutOfMemoryError),
        ):
            rows, buffer = self._rows(micro_batches, totals), self._buffer()
        failed = any(world.all_gather(buffer is None))
        if failed or buffer is None:
            self._skip()
            return None
        found = self._collect(self._parts(rows, buffer), self.run.names)
        return found.of([task for task in self.run.names if any(t[task] for t in totals)])

    def _from_rows(self, rows: Tensor, tasks: Sequence[str]) -> Gramians:
        """Use gradients over all ranks, (tasks, shared values)."""
        sizes = [parameter.numel() for parameter in self.run.shared]
        return self._collect(iter(rows.split(sizes, dim=1)), tasks)

    def _utterances(self, micro_batches: Sequence[MicroBatch]) -> list[dict[str, float]]:
        """Utterances of each task over all ranks in the draw of each micro-batch."""
        names = list(self.run.names)
        counts = torch.zeros(len(micro_batches), len(names), dtype=torch.float64)
        for row, micro_batch in zip(counts, micro_batches, strict=True):
            for batch in micro_batch.draw:
                row[names.index(batch.task)] += batch.utterances
        self.run.world.sum(counts)
        return [dict(zip(names, row, strict=True)) for row in counts.tolist()]

    def _rows(
        self, micro_batches: Sequence[MicroBatch], totals: Sequence[Mapping[str, float]]
    ) -> dict[str, list[Tensor]]:
        """This rank's summand in the gradient of each of its tasks, by shared parameter."""
        rows = {task: [torch.zeros(p.numel()) for p in self.run.shared] for task in self.run.tasks}
        for micro_batch, total in zip(micro_batches, totals, strict=True):
            for batches in by_task(micro_batch.batches, 0):
                task = batches[0].task
                loss = loss_of(self.run, batches, total[task] * self.accumulate)
                for values, gradient in zip(rows[task], gradients_of(self.run, loss), strict=True):
                    if gradient is not None:
                        values += gradient.reshape(-1).cpu()
        return rows

    def _buffer(self) -> Tensor:
        """Memory for the gradients of the largest parameter; allocated where all ranks can skip."""
        largest = max(parameter.numel() for parameter in self.run.shared)
        return torch.empty(len(self.run.names) * largest, device=self.run.encoder.device)

    def _parts(self, rows: Mapping[str, Sequence[Tensor]], buffer: Tensor) -> Iterator[Tensor]:
        """The gradients of all tasks over all ranks, (tasks, values) of one parameter at a time."""
        for index, parameter in enumerate(self.run.shared):
            part = buffer[: len(self.run.names) * parameter.numel()].view(len(self.run.names), -1)
            for row, task in zip(part, self.run.names, strict=True):
                if task in rows:
                    row.copy_(rows[task][index])
                else:
                    row.zero_()
            yield self.run.world.sum(part)

    def _collect(self, parts: Iterator[Tensor], tasks: Sequence[str]) -> Gramians:
        names = group_names(self.run)
        groups: dict[str, Tensor] = {}
        for name, part in zip(names, parts, strict=True):
            product = (part @ part.T).double()
            groups[name] = groups[name] + product if name in groups else product
        in_order = dict.fromkeys([*_names_of_layers(self.run.encoder.upstream), *groups])
        by_group = {name: groups[name].cpu() for name in in_order if name in groups}
        total = torch.stack(list(by_group.values())).sum(dim=0)
        return Gramians(tasks, {ALL: total, **by_group})

    def _skip(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self._warned:
            logger.warning(
                "The memory of a GPU is too small to compare the gradients of the tasks: "
                "--log_conflicts skips such steps."
            )
        self._warned = True


def group_names(run: Run) -> list[str]:
    """The group of layers of each shared parameter: `front_end`, `layers_1-3`, `featurizer`, ...

    `encoder` if the upstream does not tell its layers.
    """
    upstream = run.encoder.upstream
    trained = [name for name, p in upstream.named_parameters() if p.requires_grad]
    of_layer = _names_of_layers(upstream)
    layers = upstream.parameter_layers() or {}
    names = [of_layer[layers[name]] if layers else "encoder" for name in trained]
    return names + ["featurizer"] * (len(run.shared) - len(trained))


def _names_of_layers(upstream: Upstream) -> list[str]:
    """The group of each layer, by its number."""
    last = max((upstream.parameter_layers() or {"": 0}).values())
    count = min(LAYER_GROUPS, last)
    names = ["front_end"]
    for group in range(count):
        first, end = group * last // count + 1, (group + 1) * last // count
        name = f"layer_{first}" if first == end else f"layers_{first}-{end}"
        names += [name] * (end - first + 1)
    return names
