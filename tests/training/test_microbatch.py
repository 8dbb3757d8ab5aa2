"""Division of steps into micro-batches, and the number for the next step."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.distributed.world import World
from s3prl_mtl.training.microbatch import (
    FEWER_AFTER_STEPS,
    MicroBatch,
    MicroBatcher,
    OutOfMemory,
    TasksDropped,
    by_task,
    split_batches,
)
from s3prl_mtl.training.pass_limit import PassLimit, seconds_that_fit
from s3prl_mtl.training.skips import SkipCounts
from tests.mistakes import user_error


def batch_of(task: str, *lengths: int) -> Batch:
    wavs = [torch.zeros(length) for length in lengths]
    return Batch(task, 0, wavs, [list(range(len(lengths))), torch.arange(len(lengths)), None])


def test_micro_batches_hold_every_utterance_once_and_get_smaller():
    batches = [batch_of("a", 50, 60, 70), batch_of("b", 10), batch_of("c", 100, 5)]
    for parts in (1, 2, 4, 8, 16):
        micro_batches = split_batches(batches, parts)
        assert len(micro_batches) == parts, "all ranks must have the same number"
        held = [(b.task, label) for part in micro_batches for b in part for label in b.others[0]]
        assert sorted(held) == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 1)]
        for part in micro_batches:
            for batch in part:
                assert len(batch.wavs) == len(batch.others[0]) == len(batch.others[1])
    assert max(sum(b.utterances for b in part) for part in split_batches(batches, 8)) == 1
    assert [[b.task for b in part] for part in split_batches(batches, 2)] == [["a"], ["b", "c"]]


def test_one_task_at_a_time_has_as_many_micro_batches_on_every_rank():
    a, b, more = batch_of("a", 50, 60), batch_of("b", 10), batch_of("a", 70)
    assert by_task([a, b, more], 3) == [[a, more], [b], []]
    assert by_task([], 2) == [[], []]
    for draw in ([a, b, more], [b], []):
        batcher = MicroBatcher(World(), SkipCounts(["a", "b"]), tasks=2)
        batcher.parts = 2
        found: list[MicroBatch] = []
        batcher.take(1, [draw, draw], lambda parts, _, found=found: found.extend(parts))
        assert len(found) == 2 * 2 * 2
        assert all(len({batch.task for batch in part.batches}) <= 1 for part in found)
        held = sum(batch.utterances for part in found for batch in part.batches)
        assert held == 2 * sum(batch.utterances for batch in draw)


def test_a_batch_with_an_entry_that_cannot_be_sliced_stays_whole():
    whole = Batch("a", 0, [torch.zeros(5), torch.zeros(5)], [{"one": 1, "two": 2}])
    assert split_batches([whole], 2) == [[whole], []]


class Memory:
    """A step that fits if no micro-batch has more than `limit` utterances; notes its attempts."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.batcher = MicroBatcher(World(), SkipCounts(["a"]))
        self.step = 0
        self.draws = [[batch_of("a", *[10] * 8)]]

    def attempts(self) -> list[int]:
        """How many micro-batches each attempt at the next step had."""
        found = []

        def attempt(micro_batches: list[MicroBatch], dropped: frozenset[str]) -> None:
            found.append(len(micro_batches))
            if any(sum(b.utterances for b in m.batches) > self.limit for m in micro_batches):
                raise OutOfMemory

        self.step += 1
        self.batcher.take(self.step, self.draws, attempt)
        return found


def test_the_next_step_starts_with_as_many_micro_batches_as_the_last_one_ended_with():
    memory = Memory(limit=2)
    assert memory.attempts() == [1, 2, 4]
    assert [memory.attempts() for _ in range(5)] == [[4]] * 5
    assert memory.batcher.skips.steps_in_parts == 6


def test_half_as_many_micro_batches_are_tried_after_some_hundred_steps():
    memory = Memory(limit=2)
    memory.attempts()
    rest = [memory.attempts() for _ in range(FEWER_AFTER_STEPS)]
    assert rest[:-1] == [[4]] * (FEWER_AFTER_STEPS - 1) and rest[-1] == [2, 4]
    # From now on there is more memory.
    memory.limit = 8
    found = [memory.attempts() for _ in range(2 * FEWER_AFTER_STEPS)]
    expected = [[4]] * (FEWER_AFTER_STEPS - 1) + [[2]] * FEWER_AFTER_STEPS + [[1]]
    assert found == expected
    assert memory.attempts() == [1]


def test_a_larger_step_is_divided_further_and_this_is_remembered():
    memory = Memory(limit=4)
    assert memory.attempts() == [1, 2]
    memory.draws = [[batch_of("a", *[10] * 16)]]
    assert memory.attempts() == [2, 4]
    assert memory.attempts() == [4]


def test_a_restored_micro_batcher_continues_like_the_saved_one():
    memory, restored = Memory(limit=2), Memory(limit=2)
    for _ in range(FEWER_AFTER_STEPS - 3):
        memory.attempts()
    restored.batcher.load_state_dict(memory.batcher.state_dict())
    for _ in range(6):
        assert restored.attempts() == memory.attempts()


def test_a_step_without_some_tasks_keeps_its_division():
    batcher = MicroBatcher(World(), SkipCounts(["a"]))
    seen: list[tuple[int, frozenset[str]]] = []

    def attempt(micro_batches: list[MicroBatch], dropped: frozenset[str]) -> str:
        seen.append((len(micro_batches), dropped))
        if len(seen) == 1:
            raise OutOfMemory
        if not dropped:
            raise TasksDropped(frozenset({"a"}))
        return "taken"

    assert batcher.take(1, [[batch_of("a", 5, 5)]], attempt) == "taken"
    assert seen == [(1, frozenset()), (2, frozenset()), (2, frozenset({"a"}))]


def test_every_further_division_is_logged(caplog: pytest.LogCaptureFixture):
    memory = Memory(limit=2)
    with caplog.at_level(logging.WARNING, "s3prl_mtl.training.microbatch"):
        memory.attempts()
        memory.attempts()
    assert [record.args for record in caplog.records] == [(1, 2), (1, 4)]


def test_an_utterance_that_does_not_fit_ends_the_run():
    with user_error("out-of-memory", where="step 1") as caught:
        Memory(limit=0).attempts()
    assert re.findall(r"\d+", caught.value.what) == ["1"]


def test_a_step_is_divided_until_no_pass_is_longer_than_the_limit():
    seconds = [4, 3, 2, 2, 1]
    draw = [batch_of("a", *[16_000 * n for n in seconds]), batch_of("b", 16_000)]
    for limit, wanted in ((100, 1), (13, 1), (12.9, 2), (8, 4), (4, 8), (0.5, 8)):
        batcher = MicroBatcher(World(), SkipCounts(["a", "b"]), limit=PassLimit(limit))
        found: list[MicroBatch] = []
        batcher.take(1, [draw], lambda parts, _, found=found: found.extend(parts))
        assert len(found) == wanted, limit
        longest = max(sum(batch.samples for batch in part.batches) for part in found) / 16_000
        assert longest <= max(limit, max(seconds))
        assert batcher.parts == 1, "the next step may be shorter"


def test_a_step_within_the_limit_that_does_not_fit_is_divided_further():
    memory = Memory(limit=1)
    memory.batcher.limit = PassLimit(20 / 16_000)
    assert memory.attempts() == [4, 8]
    assert memory.batcher.parts == 8


def test_the_measured_limit_leaves_memory_free_and_never_divides_what_has_fitted():
    assert seconds_that_fit(100, needed=2 * 10**9, free=50 * 10**9) == pytest.approx(2000)
    assert seconds_that_fit(100, needed=2 * 10**9, free=10**9) == 100
