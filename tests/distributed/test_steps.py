"""Steps that meet losses that are no numbers, and memory that is short."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.training.microbatch import split_batches
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.training.skips import MAXIMUM_IN_A_ROW, SkipCounts
from tests.distributed.ranks import run_ranks
from tests.distributed.test_updates import (
    assert_same_update,
    make_config,
    weights_of,
    without_chance,
)

Fault = Callable[[World, MultiTaskRunner], None]


def step_with(
    world: World, config: dict[str, Any], folder: Path, fault: Fault | None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, float], dict[str, Any]]:
    """Weights before and after a step, its losses, and what was counted."""
    runner = MultiTaskRunner(config, folder, world=world)
    without_chance(runner)
    if fault is not None:
        fault(world, runner)
    before = weights_of(runner)
    report = runner.train_step()
    return before, weights_of(runner), report.losses, runner.skips.state_dict()


def plain_descent(corpus: Path, cache: Path, tasks: str = "ks,er,asr") -> dict[str, Any]:
    return make_config(corpus, cache, tasks, optimizer={"name": "SGD", "lr": 1.0})


# --------------------------------------------------------------------- no number


def no_number_on_the_last_rank(world: World, runner: MultiTaskRunner) -> None:
    if world.rank == world.size - 1:
        expert = runner.tasks["er"].expert
        forward = expert.forward
        expert.forward = lambda *args, **kwargs: forward(*args, **kwargs) * math.nan


def test_a_task_without_a_number_is_left_out_on_all_ranks_and_the_others_go_on(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = plain_descent(tiny_corpus, manifest_cache)
    faulty = run_ranks(2, step_with, config, tmp_path / "a", no_number_on_the_last_rank)
    without = plain_descent(tiny_corpus, manifest_cache, "ks,asr")
    expected = run_ranks(2, step_with, without, tmp_path / "b", None)[0]
    for before, after, losses, counted in faulty:
        assert counted["dropped_steps"] == {"ks": 0, "er": 1, "asr": 0}
        assert math.isnan(losses["er"]) and math.isfinite(losses["asr"])
        head = [name for name in before if name.startswith("er/")]
        assert head and all(torch.equal(before[name], after[name]) for name in head)
        # The step that is taken is the one of a run that has no such task.
        assert_same_update(expected[:3], (before, after, losses), names=list(expected[0]))


def no_number_in_the_second_draw(world: World, runner: MultiTaskRunner) -> None:
    expert = runner.tasks["er"].expert
    forward = expert.forward
    calls: list[int] = []

    def sometimes(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        loss = forward(*args, **kwargs)
        return loss * math.nan if len(calls) == 2 and world.rank == world.size - 1 else loss

    expert.forward = sometimes


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_task_that_fails_late_in_a_step_has_no_part_in_any_of_it(
    ranks: int, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = plain_descent(tiny_corpus, manifest_cache)
    config["runner"]["gradient_accumulate_steps"] = 2
    without = plain_descent(tiny_corpus, manifest_cache, "ks,asr")
    without["runner"]["gradient_accumulate_steps"] = 2
    expected = run_ranks(ranks, step_with, without, tmp_path / "b", None)[0]
    for before, after, losses, counted in run_ranks(
        ranks, step_with, config, tmp_path / "a", no_number_in_the_second_draw
    ):
        assert counted["dropped_steps"] == {"ks": 0, "er": 1, "asr": 0}
        head = [name for name in before if name.startswith("er/")]
        assert head and all(torch.equal(before[name], after[name]) for name in head)
        assert_same_update(expected[:3], (before, after, losses), names=list(expected[0]))


def test_fifty_such_steps_in_a_row_end_the_run_by_the_name_of_the_task():
    skips = SkipCounts(["ks", "er"])
    for skips.step in range(1, MAXIMUM_IN_A_ROW):
        skips.note_losses({"er"})
    skips.note_losses(set())
    for skips.step in range(1, MAXIMUM_IN_A_ROW):
        skips.note_losses({"er"})
    resumed = SkipCounts(["ks", "er"])
    resumed.load_state_dict(skips.state_dict())
    assert resumed.dropped_steps == {"ks": 0, "er": 2 * (MAXIMUM_IN_A_ROW - 1)}
    with pytest.raises(UserError, match="The loss of er has not been a finite number for 50 steps"):
        resumed.note_losses({"er"})


def test_fifty_gradients_without_a_number_end_the_run():
    skips = SkipCounts(["ks"])
    for _ in range(MAXIMUM_IN_A_ROW - 1):
        skips.note_norm(math.inf, ["the head of ks"])
    with pytest.raises(UserError, match=r"50 steps in a row \(the head of ks\)"):
        skips.note_norm(math.nan, ["the head of ks"])


# -------------------------------------------------------------------- short memory

LIMIT = 40_000
"""Samples that fit at once; the batches of a step have several times as many."""


def short_memory_forward(world: World, runner: MultiTaskRunner) -> None:
    """The encoder of the last rank cannot take more than LIMIT samples, or one utterance."""
    if world.rank != world.size - 1:
        return
    features = runner.encoder.features

    def limited(wavs: list[Any]) -> list[torch.Tensor]:
        if len(wavs) > 1 and sum(len(wav) for wav in wavs) > LIMIT:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return features(wavs)

    runner.encoder.features = limited


def short_memory_backward(world: World, runner: MultiTaskRunner) -> None:
    """The same, found out in the middle of the backward pass."""
    if world.rank != world.size - 1:
        return
    features = runner.encoder.features

    def refuse(gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def limited(wavs: list[Any]) -> list[torch.Tensor]:
        made = features(wavs)
        if len(wavs) > 1 and sum(len(wav) for wav in wavs) > LIMIT:
            made[0].register_hook(refuse)
        return made

    runner.encoder.features = limited


@pytest.mark.parametrize(
    "fault", [pytest.param(short_memory_forward, marks=pytest.mark.slow), short_memory_backward]
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_that_does_not_fit_is_taken_in_parts_and_stays_the_same(
    fault: Fault, ranks: int, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = plain_descent(tiny_corpus, manifest_cache)
    expected = run_ranks(ranks, step_with, config, tmp_path / "a", None)[0]
    for rank in run_ranks(ranks, step_with, config, tmp_path / "b", fault):
        assert rank[3]["steps_in_parts"] == 1
        assert rank[2] == pytest.approx(expected[2], rel=1e-5)
        assert_same_update(expected[:3], rank[:3])


def no_memory(world: World, runner: MultiTaskRunner) -> None:
    def refuse(wavs: list[Any]) -> list[torch.Tensor]:
        if not wavs:
            return []
        raise torch.OutOfMemoryError("CUDA out of memory.")

    if world.rank == 0:
        runner.encoder.features = refuse


def refused(world: World, config: dict[str, Any], folder: Path) -> str:
    try:
        step_with(world, config, folder, no_memory)
    except UserError as mistake:
        return str(mistake)
    return "nothing"


@pytest.mark.parametrize("ranks", [1, 2])
def test_memory_that_is_too_small_for_one_utterance_ends_the_run_on_all_ranks(
    ranks: int, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = plain_descent(tiny_corpus, manifest_cache)
    for text in run_ranks(ranks, refused, config, tmp_path):
        assert "memory of the GPU is too small" in text and "at most 1 utterances" in text


def batch_of(task: str, *lengths: int) -> Batch:
    wavs = [torch.zeros(length) for length in lengths]
    return Batch(task, 0, wavs, [list(range(len(lengths))), torch.arange(len(lengths)), None])


def test_parts_hold_every_utterance_once_and_get_smaller():
    work = [batch_of("a", 50, 60, 70), batch_of("b", 10), batch_of("c", 100, 5)]
    for parts in (1, 2, 4, 8, 16):
        micro_batches = split_batches(work, parts)
        assert len(micro_batches) == parts, "all ranks must have the same number"
        held = [(p.task, label) for part in micro_batches for p in part for label in p.others[0]]
        assert sorted(held) == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 1)]
        for part in micro_batches:
            for p in part:
                assert len(p.wavs) == len(p.others[0]) == len(p.others[1])
    assert max(sum(p.utterances for p in part) for part in split_batches(work, 8)) == 1
    assert [[p.task for p in part] for part in split_batches(work, 2)] == [["a"], ["b", "c"]]


def test_a_batch_that_nobody_can_cut_stays_whole():
    whole = Batch("a", 0, [torch.zeros(5), torch.zeros(5)], [{"one": 1, "two": 2}])
    assert split_batches([whole], 2) == [[whole], []]
