"""Evaluation of splits: divided over the ranks, measured as if one process had done all of it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from s3prl_mtl.distributed.world import Group, World
from s3prl_mtl.encoding import Encoding
from s3prl_mtl.errors import SharedMistake, UserError
from s3prl_mtl.reading import EpochReader
from s3prl_mtl.reporting import Report, report_split
from s3prl_mtl.snapshot import head_entry
from s3prl_mtl.task import Task

logger = logging.getLogger(__name__)

Records = dict[str, list[Any]]


class Interrupted(Exception):
    """A rank was asked to stop, so the evaluation ended on all of them without a result."""


class EvaluationFailed(RuntimeError):
    """Another rank met a failure of the program while it evaluated."""


class Evaluator:
    """Evaluates splits with the weights as they are.

    The batches of a split are the same however many ranks there are; each rank that holds the task
    takes every so-many-th one. What the expert recorded of each batch is put in the order of the
    batches before the expert measures it, on the first of the task's ranks: the metrics are those
    of one process, to the last digit.

    Args:
        encoding: encoder and featurizer.
        tasks: those of this rank.
        groups: the ranks that share each of them.
        world: all ranks.
        seed: of the run.
        stop_asked: whether this rank was asked to stop.
    """

    def __init__(
        self,
        encoding: Encoding,
        tasks: Mapping[str, Task],
        groups: Mapping[str, Group],
        world: World,
        seed: int,
        stop_asked: Callable[[], bool],
    ) -> None:
        self.encoding = encoding
        self.tasks = tasks
        self.groups = groups
        self.world = world
        self.seed = seed
        self.stop_asked = stop_asked

    def evaluate(self, splits: Sequence[tuple[str, str]], step: int) -> list[Report]:
        """Evaluate splits; every rank must call it with the same ones.

        Args:
            splits: pairs of task and split.
            step: of the weights.

        Returns:
            on the first rank the reports of all splits, in their order; nothing on the others.

        Raises:
            Interrupted: on all ranks. What the experts remember is as it was before.
            UserError: a split cannot be read, or has no utterances; likewise on all ranks.
        """
        before = {name: _memory(task) for name, task in self.tasks.items()}
        share_buffers(self.tasks, self.groups)
        failure: Exception | None = None
        reports: list[tuple[int, Report]] = []
        for place, (name, split) in enumerate(splits):
            if name not in self.tasks:
                continue
            task, group = self.tasks[name], self.groups[name]
            parts = None
            if failure is None and not self.stop_asked():
                try:
                    with self.world.doing(f"evaluating {name} {split}"):
                        parts = self._records_of_own_batches(task, split)
                except Exception as error:
                    failure = error
            gathered = group.gather(parts)
            if gathered is not None and all(part is not None for part in gathered):
                try:
                    with self.world.doing(f"measuring {name} {split}"):
                        report = self._measure(task, split, gathered, step)
                    logger.info("step %d  %s", step, report)
                    reports.append((place, report))
                except Exception as error:
                    failure = error
            _follow(task, group)
        try:
            self._agree(failure)
        except Exception:
            for name, task in self.tasks.items():
                _remember(task, before[name])
            raise
        collected = self.world.gather(reports) or []
        for rank, others in enumerate(collected):
            for _, report in others if rank != self.world.rank else []:
                logger.info("step %d  %s", step, report)
        in_order = sorted((entry for entries in collected for entry in entries), key=lambda e: e[0])
        return [report for _, report in in_order]

    @torch.no_grad()
    def try_out(self, splits: Sequence[tuple[str, str]]) -> None:
        """One batch of each of the splits of this rank's tasks, through encoder and head."""
        self.encoding.set_training(False)
        for name, split in splits:
            if name not in self.tasks:
                continue
            task = self.tasks[name]
            task.expert.train(False)
            reader = EpochReader(name, task.expert, split, seed=self.seed, training=False)
            for batch in islice(reader, 1):
                features = self.encoding.inputs(task.expert, batch.wavs)
                task.expert(split, features, *batch.others, records=defaultdict(list))
                logger.info("%s %s: in order", name, split)

    @torch.no_grad()
    def _records_of_own_batches(self, task: Task, split: str) -> dict[int, Records] | None:
        """{batch: what the expert recorded of it} of this rank; None if it was asked to stop."""
        self.encoding.set_training(False)
        task.expert.train(False)
        group = self.groups[task.name]
        reader = EpochReader(
            task.name,
            task.expert,
            split,
            seed=self.seed,
            shares=(group.index,),
            num_shares=group.size,
            training=False,
        )
        parts: dict[int, Records] = {}
        for batch in reader:
            if self.stop_asked():
                return None
            features = self.encoding.inputs(task.expert, batch.wavs)
            # s3prl numbers the batches of an evaluation for experts that want it.
            number = {"batch_id": batch.number} if task.takes_batch_id else {}
            parts[batch.number] = defaultdict(list)
            task.expert(split, features, *batch.others, records=parts[batch.number], **number)
        return parts

    def _measure(
        self, task: Task, split: str, gathered: Sequence[dict[int, Records] | None], step: int
    ) -> Report:
        parts = {number: records for part in gathered for number, records in (part or {}).items()}
        if not parts:
            raise UserError(f"{task.name}: the split {split!r} has no utterances.")
        records: Records = defaultdict(list)
        for number in sorted(parts):
            for key, values in parts[number].items():
                if not isinstance(values, list):
                    raise UserError(
                        f"The expert of {task.name} records {key!r} as {type(values).__name__}, "
                        "and only lists can be put together from several batches.",
                        where=f"{type(task.expert).__module__}.{type(task.expert).__qualname__}",
                        fix="Let `forward` append to `records[...]`, or extend it.",
                    )
                records[key] += values
        report = report_split(task, split, records, step, list(range(len(parts))), len(parts))
        if report.save_names and self.world.rank != 0:
            report.head = head_entry(task)
        return report

    def _agree(self, failure: Exception | None) -> None:
        """Raise on all ranks what happened on one."""
        told = None if failure is None else (isinstance(failure, UserError), str(failure))
        said = self.world.all_gather((self.stop_asked(), told))
        for rank, (_, other) in enumerate(said):
            if other is None or self.world.size == 1:
                continue
            is_mistake, text = other
            if is_mistake:
                raise SharedMistake(text) from failure
            if failure is None:
                raise EvaluationFailed(f"Rank {rank} failed in the evaluation: {text}.")
        if failure is not None:
            raise failure
        if any(stop for stop, _ in said):
            raise Interrupted


def share_buffers(tasks: Mapping[str, Task], groups: Mapping[str, Group]) -> None:
    """Give the heads that several ranks hold the buffers of the first of them.

    Parameters are the same everywhere; what a head counts while it trains (batch normalisation
    does) differs with the batches that a rank had.
    """
    for name, task in tasks.items():
        if groups[name].size > 1 and any(True for _ in task.expert.buffers()):
            _remember(task, groups[name].broadcast(_memory(task)))


def _follow(task: Task, group: Group) -> None:
    """Take over what the expert that measured remembers: its best score, its decision."""
    if group.size > 1:
        _remember(task, group.broadcast(_memory(task)))


def _memory(task: Task) -> tuple[dict[str, Any], Any]:
    buffers = {name: buffer.detach().cpu().clone() for name, buffer in task.expert.named_buffers()}
    return buffers, getattr(task.expert, "decision", None)


def _remember(task: Task, memory: tuple[dict[str, Any], Any]) -> None:
    buffers, decision = memory
    for name, buffer in task.expert.named_buffers():
        buffer.data = buffers[name].to(buffer.device)
    if decision is not None:
        task.expert.decision = dict(decision)
