"""Evaluate splits, divided over ranks, with the metrics of a single process."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from s3prl_mtl.checkpoint.contents import TaskCheckpoint
from s3prl_mtl.data.batching import check_dropped
from s3prl_mtl.data.epoch_reader import Batch, EpochReader
from s3prl_mtl.distributed.world import Group
from s3prl_mtl.errors import UserError
from s3prl_mtl.nn import to_cpu
from s3prl_mtl.tasks.base import TaskExpert
from s3prl_mtl.tracking.progress import EvaluationProgress
from s3prl_mtl.training.reporting import Report, report_split, unscored_report
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.task import Records, Task
from s3prl_mtl.upstreams import HiddenStates
from s3prl_mtl.upstreams.shared_encoder import Masks, draws_masks

logger = logging.getLogger(__name__)

ExpertState = tuple[dict[str, Any], Any]
"""Buffers and decision of an expert: best scores, counts, tuned thresholds."""


@dataclass
class Share:
    """Records of one rank's batches of a split.

    Args:
        records: those of the expert, by number of the batch.
        dropped: utterances that could not be decoded.
        utterances: number of utterances of the whole split; 0 if unknown.
    """

    records: dict[int, Records]
    dropped: int
    utterances: int


@dataclass(frozen=True)
class EvaluatedSplit:
    """A split to evaluate, and its place in the order of the reports."""

    place: int
    task: Task
    split: str


class Interrupted(Exception):
    """A rank was asked to stop: the evaluation ended on all ranks without a result."""


class Evaluator:
    """Evaluates splits with the current weights.

    The batches of a split do not depend on the number of ranks; the ranks that hold the task take
    them in turn. On the first of these ranks the records are joined in the order of the batches,
    and the expert computes its metrics, identical to those of one process.

    Args:
        run: the run.
        batches: maximum number of batches of a split; None for all.
        log_level: level of the log lines with the metrics of a split.
    """

    def __init__(self, run: Run, batches: int | None = None, log_level: int = logging.INFO) -> None:
        self.run = run
        self.batches = batches
        self.log_level = log_level

    def evaluate(self, splits: Sequence[tuple[str, str]]) -> list[Report]:
        """Evaluate splits; every rank must call it with the same ones.

        Args:
            splits: pairs of task and split.

        Returns:
            the reports of all splits in their order on the first rank; empty on the others. A
            split that cannot be scored has a report with a `problem`.

        Raises:
            Interrupted: on all ranks. Best scores and decisions of the experts are unchanged.
            UserError: on all ranks; a split cannot be read.
        """
        before = self.expert_states()
        share_buffers(self.run)
        failure: Exception | None = None
        reports: list[tuple[int, Report]] = []
        shown = self.run.world.is_lead and self.log_level >= logging.INFO
        with EvaluationProgress(shown) as progress:
            for entries in self.run.world.run_on_all_ranks(lambda: self._by_audio(splits)):
                shares: list[Share] | None = None
                if failure is None and not self.run.stop_asked():
                    names = ", ".join(f"{entry.task.name} {entry.split}" for entry in entries)
                    try:
                        with self.run.world.doing(f"evaluating {names}"):
                            shares = self._own_shares(entries, progress)
                    except Exception as error:
                        failure = error
                for number, entry in enumerate(entries):
                    task, group = entry.task, self.run.groups[entry.task.name]
                    gathered = group.gather(shares[number] if shares is not None else None)
                    parts = [part for part in gathered or [] if part is not None]
                    if len(parts) == group.size:
                        try:
                            with self.run.world.doing(f"measuring {task.name} {entry.split}"):
                                report = self._measure(task, entry.split, parts)
                            self._log(report)
                            reports.append((entry.place, report))
                        except Exception as error:
                            failure = error
                    _sync_expert_state(task, group)
        try:
            self.run.world.raise_on_all_ranks(failure)
            if any(self.run.world.all_gather(self.run.stop_asked())):
                raise Interrupted
        except Exception:
            self.restore(before)
            raise
        collected = self.run.world.gather(reports) or []
        for rank, others in enumerate(collected):
            for _, report in others if rank != self.run.world.rank else []:
                self._log(report)
        in_order = sorted((entry for entries in collected for entry in entries), key=lambda e: e[0])
        return [report for _, report in in_order]

    def _by_audio(self, splits: Sequence[tuple[str, str]]) -> list[list[EvaluatedSplit]]:
        """The splits of this rank's tasks, in groups with the same utterances on the same ranks.

        Those of a task stay in their order, each in a group of its own: dev may choose a threshold
        that `forward` uses on test.
        """
        groups: list[list[EvaluatedSplit]] = []
        keys: list[Any] = []
        latest: dict[str, int] = {}
        for place, (name, split) in enumerate(splits):
            if name not in self.run.tasks:
                continue
            task = self.run.tasks[name]
            audio = None
            if isinstance(task.expert, TaskExpert) and not draws_masks(task.expert):
                audio = task.expert.audio_digest(split)
            key = audio or place, tuple(self.run.placement.ranks_of(name))
            later = range(latest.get(name, -1) + 1, len(groups))
            number = next((n for n in later if keys[n] == key), len(groups))
            if number == len(groups):
                groups.append([])
                keys.append(key)
            groups[number].append(EvaluatedSplit(place, task, split))
            latest[name] = number
        return groups

    @torch.no_grad()
    def _own_shares(
        self, entries: Sequence[EvaluatedSplit], progress: EvaluationProgress
    ) -> list[Share] | None:
        """The records of this rank's batches of some splits; None if it was asked to stop.

        Their batches are read side by side, and encoded once where they have the same waveforms.
        """
        self.run.encoder.set_training(False)
        readers = []
        for entry in entries:
            name = entry.task.name
            entry.task.expert.train(False)
            group = self.run.groups[name]
            reader = EpochReader(
                name,
                entry.task.expert,
                entry.split,
                seed=self.run.seed,
                shares=(group.index,),
                num_shares=group.size,
                training=False,
            )
            readers.append(reader)
        limits = [count for reader in readers for count in (reader.num_batches, self.batches)]
        title = "+".join(entry.task.name for entry in entries)
        progress.begin(title, entries[0].split, min(filter(None, limits), default=None))
        records: list[dict[int, Records]] = [{} for _ in entries]
        for batches in zip_longest(*readers):
            wanted = [
                (entry, batch, parts)
                for entry, batch, parts in zip(entries, batches, records, strict=True)
                if batch is not None and (self.batches is None or batch.number < self.batches)
            ]
            if not wanted:
                break
            wavs: Sequence[Any] = ()
            masks: Masks = ()
            hidden: HiddenStates | None = None
            for entry, batch, parts in wanted:
                if self.run.stop_asked():
                    return None
                if not same_waveforms(wavs, batch.wavs):
                    hidden = None  # Not beside the next ones.
                    # Tasks that draw masks are alone in their group.
                    masks = self.run.encoder.masks(
                        entry.task.expert, entry.split, batch.wavs, batch.others
                    )
                    wavs, hidden = batch.wavs, self.run.encoder.hidden_states(batch.wavs, masks)
                parts[batch.number] = self._records(entry, batch, hidden, masks)
                # Batches are taken in turn: the others have as many.
                progress.advance(batch.number + 1)
        return [
            Share(parts, reader.dropped, reader.utterances)
            for parts, reader in zip(records, readers, strict=True)
        ]

    def _records(self, entry: EvaluatedSplit, batch: Batch, hidden: Any, masks: Masks) -> Records:
        """The records of a batch, on the CPU: those of a split may not fit into a GPU's memory."""
        task = entry.task
        inputs = self.run.encoder.inputs_from(task.expert, hidden, masks)
        # Experts of s3prl may take the number of the batch in an evaluation.
        number = {"batch_id": batch.number} if task.takes_batch_id else {}
        records: Records = defaultdict(list)
        task.expert(entry.split, inputs, *batch.others, records=records, **number)
        return to_cpu(records)

    def _measure(self, task: Task, split: str, shares: Sequence[Share]) -> Report:
        # Over all shares, as in one process.
        check_dropped(sum(share.dropped for share in shares), shares[0].utterances)
        parts = {number: part for share in shares for number, part in share.records.items()}
        records: Records = defaultdict(list)
        for number in sorted(parts):
            for key, values in parts[number].items():
                if not isinstance(values, list):
                    raise UserError(
                        f"The expert of {task.name} records {key!r} as {type(values).__name__}, "
                        "but only lists of several batches can be joined.",
                        where=f"{type(task.expert).__module__}.{type(task.expert).__qualname__}",
                        fix="Append to or extend `records[...]` in `forward`.",
                        code="expert-invalid",
                    )
                records[key] += values
        before = _expert_state(task)
        try:
            if not parts:
                raise UserError("The split has no utterances.", code="corpus-empty")
            report = report_split(
                task, split, records, self.run.step, list(range(len(parts))), len(parts)
            )
        except UserError as problem:
            # The metrics of the other tasks are not lost because of this one.
            _set_expert_state(task, before)
            return unscored_report(task, split, self.run.step, problem)
        if report.save_names and self.run.world.rank != 0:
            report.head = TaskCheckpoint.capture(task.expert)
        return report

    def _log(self, report: Report) -> None:
        level = self.log_level if report.problem is None else logging.WARNING
        logger.log(level, "step %d  %s", self.run.step, report)

    def expert_states(self) -> dict[str, ExpertState]:
        """Buffers and decisions of the experts of this rank."""
        return {name: _expert_state(task) for name, task in self.run.tasks.items()}

    def restore(self, states: Mapping[str, ExpertState]) -> None:
        """Restore buffers and decisions of the experts to their state before an evaluation."""
        for name, task in self.run.tasks.items():
            _set_expert_state(task, states[name])


def same_waveforms(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether two batches have the same waveforms in the same order."""
    return len(some) == len(others) and all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        for a, b in zip(some, others, strict=True)
    )


def share_buffers(run: Run) -> None:
    """Copy the buffers of shared heads from the first of their ranks to the others.

    Parameters are equal on all ranks; buffers such as running statistics of batch normalisation
    depend on the batches of a rank.
    """
    for name, task in run.tasks.items():
        _sync_expert_state(task, run.groups[name])


def _sync_expert_state(task: Task, group: Group) -> None:
    """Copy buffers and decision from the first rank of the task, which computes its metrics."""
    if group.size > 1:
        _set_expert_state(task, group.broadcast(_expert_state(task)))


def _expert_state(task: Task) -> ExpertState:
    buffers = {name: buffer.detach().cpu().clone() for name, buffer in task.expert.named_buffers()}
    return buffers, getattr(task.expert, "decision", None)


def _set_expert_state(task: Task, state: ExpertState) -> None:
    buffers, decision = state
    for name, buffer in task.expert.named_buffers():
        buffer.data = buffers[name].to(buffer.device)
    if decision is not None:
        task.expert.decision = dict(decision)
