"""Divide a step into micro-batches if it exceeds the memory of a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from s3prl_mtl.data import SAMPLE_RATE
from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import SharedMistake
from s3prl_mtl.training.pass_limit import PassLimit
from s3prl_mtl.training.skips import SkipCounts

logger = logging.getLogger(__name__)

T = TypeVar("T")

FEWER_AFTER_STEPS = 200
"""Consecutive steps with the same number of micro-batches before half as many are tried."""


class OutOfMemory(Exception):
    """The GPU of a rank ran out of memory in an attempt at a step; raised on all ranks."""


class TasksDropped(Exception):
    """A loss that is already part of the gradients is not finite; raised on all ranks.

    Args:
        tasks: tasks to drop from the step.
    """

    def __init__(self, tasks: frozenset[str]) -> None:
        super().__init__(tasks)
        self.tasks = tasks


@dataclass(frozen=True)
class MicroBatch:
    """Batches of one forward and backward pass, on one rank.

    Args:
        batches: of any tasks; may be empty.
        draw: one batch of every share of every task of this rank; includes `batches`.
    """

    batches: Sequence[Batch]
    draw: Sequence[Batch]


class MicroBatcher:
    """Take steps in the fewest micro-batches that fit into memory, equally many on all ranks.

    A step that runs out of memory is repeated with twice as many. The next step starts with the
    number of the last one; after `FEWER_AFTER_STEPS` steps half as many are tried.

    Args:
        world: all ranks.
        skips: counts the steps that are divided.
        tasks: the largest number of tasks of a rank if every micro-batch is to have utterances of
            one task; None to mix tasks.
        limit: of the audio of a micro-batch; steps are divided further until all ranks keep it, or
            cannot be divided.

    Attributes:
        parts: micro-batches that each draw of a step, or each task of it, is divided into; a power
            of two.
        steps: steps taken since `parts` was last changed.
    """

    def __init__(
        self,
        world: World,
        skips: SkipCounts,
        tasks: int | None = None,
        limit: PassLimit | None = None,
    ) -> None:
        self.world = world
        self.skips = skips
        self.tasks = tasks
        self.limit = limit if limit is not None else PassLimit()
        self.parts = 1
        self.steps = 0

    def take(
        self,
        step: int,
        draws: Sequence[Sequence[Batch]],
        attempt: Callable[[list[MicroBatch], frozenset[str]], T],
    ) -> T:
        """Attempt a step, with more micro-batches until it fits into memory.

        Args:
            step: its number.
            draws: this rank's batches.
            attempt: takes the step with the given micro-batches, without the given tasks.

        Returns:
            the result of the attempt that succeeded.

        Raises:
            UserError: smaller micro-batches are not possible.
        """
        if self.parts > 1 and self.steps >= FEWER_AFTER_STEPS:
            self._set_parts(self.parts // 2)
        dropped: frozenset[str] = frozenset()
        while True:
            parts = self._parts_within_limit(draws)
            micro_batches = self._divide(draws, parts)
            try:
                with self.limit.measuring(_longest(micro_batches)):
                    result = attempt(micro_batches, dropped)
                break
            except TasksDropped as late:
                dropped = late.tasks
                continue
            except OutOfMemory:
                pass  # Handled below, after its traceback has released the tensors of the step.
            self._increase(step, draws, parts)
        self.steps += 1
        if parts > 1:
            self.skips.steps_in_parts += 1
        return result

    def divide(self, draws: Sequence[Sequence[Batch]]) -> list[MicroBatch]:
        """The micro-batches that a step would begin with; every rank must call it."""
        return self._divide(draws, self._parts_within_limit(draws))

    def state_dict(self) -> dict[str, int]:
        return {"parts": self.parts, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.parts, self.steps = state["parts"], state["steps"]

    def _set_parts(self, parts: int) -> None:
        self.parts, self.steps = parts, 0

    def _divide(self, draws: Sequence[Sequence[Batch]], parts: int) -> list[MicroBatch]:
        """The micro-batches of a step; equally many on all ranks."""
        return [
            MicroBatch(part, draw)
            for draw in draws
            for batches in ([draw] if self.tasks is None else by_task(draw, self.tasks))
            for part in split_batches(batches, parts)
        ]

    def _parts_within_limit(self, draws: Sequence[Sequence[Batch]]) -> int:
        """At least `self.parts`; the same on all ranks."""
        if not self.limit.exists:
            return self.parts
        parts, seconds = self.parts, _longest(self._divide(draws, self.parts))
        while seconds > self.limit.seconds:
            shorter = _longest(self._divide(draws, 2 * parts))
            if shorter == seconds:
                break
            parts, seconds = 2 * parts, shorter
        return max(self.world.all_gather(parts))

    def _increase(self, step: int, draws: Sequence[Sequence[Batch]], parts: int) -> None:
        """Double the number of micro-batches, if this reduces the largest one on any rank."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        now, then = (_largest(self._divide(draws, count)) for count in (parts, 2 * parts))
        by_rank = self.world.all_gather((now > then, now))
        if not any(can_shrink for can_shrink, _ in by_rank):
            raise SharedMistake(
                "The memory of the GPU is too small for a micro-batch that cannot be divided: "
                f"{max(size for _, size in by_rank)} utterances.",
                where=f"step {step}",
                fix="Take very long utterances out of the corpus, or use --precision bf16, "
                "--freeze_upstream or a smaller encoder.",
                code="out-of-memory",
            )
        self._set_parts(2 * parts)
        logger.warning(
            "The memory of a GPU is too small for step %d: trying again in %d micro-batches.",
            *(step, self.parts),
        )


def _longest(micro_batches: Sequence[MicroBatch]) -> float:
    """Seconds of audio of the longest micro-batch."""
    samples = (sum(batch.samples for batch in one.batches) for one in micro_batches)
    return max(samples, default=0) / SAMPLE_RATE


def _largest(micro_batches: Sequence[MicroBatch]) -> int:
    """Utterances of the largest micro-batch."""
    utterances = (sum(batch.utterances for batch in one.batches) for one in micro_batches)
    return max(utterances, default=0)


def by_task(batches: Sequence[Batch], count: int) -> list[list[Batch]]:
    """The batches of each task, and empty lists up to a number of them."""
    groups: dict[str, list[Batch]] = {}
    for batch in batches:
        groups.setdefault(batch.task, []).append(batch)
    return [*groups.values(), *([] for _ in range(count - len(groups)))]


def split_batches(batches: Sequence[Batch], parts: int) -> list[list[Batch]]:
    """Divide batches into micro-batches of about equal length in samples.

    Batches are kept whole if there are several; a single batch is divided into utterances, in
    their order.

    Args:
        batches: of any tasks.
        parts: a power of two. With fewer utterances than parts some micro-batches are empty, so
            that all ranks have the same number.
    """
    if parts == 1:
        return [list(batches)]
    first, second = _in_two(list(batches))
    return split_batches(first, parts // 2) + split_batches(second, parts // 2)


def _in_two(batches: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    if len(batches) == 1:
        batches = halves(batches[0])
    half = sum(batch.samples for batch in batches) / 2
    samples = 0
    for count, batch in enumerate(batches, 1):
        samples += batch.samples
        if samples >= half or count == len(batches) - 1:
            return batches[:count], batches[count:]
    return batches, []


def halves(batch: Batch) -> list[Batch]:
    """Split a batch into two; return it whole if this is not possible.

    All items other than the waveforms must be None or sequences with an entry per utterance.
    """
    middle = batch.utterances // 2
    if middle == 0 or not all(_is_sliceable(other, batch.utterances) for other in batch.others):
        return [batch]
    return [
        Batch(
            batch.task,
            batch.number,
            batch.wavs[part],
            [None if other is None else other[part] for other in batch.others],
        )
        for part in (slice(None, middle), slice(middle, None))
    ]


def _is_sliceable(other: Any, utterances: int) -> bool:
    if other is None:
        return True
    sliceable = hasattr(other, "__len__") and not isinstance(other, Mapping | set)
    return sliceable and len(other) == utterances
