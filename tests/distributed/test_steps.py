"""Steps with non-finite losses, and steps that do not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.training.microbatch import MicroBatch
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.upstreams import HiddenStates
from tests.distributed.ranks import run_ranks
from tests.distributed.test_updates import (
    assert_same_update,
    make_config,
    weights_of,
    without_dropout,
)

Fault = Callable[[World, MultiTaskRunner], None]


@dataclass
class Outcome:
    """What some steps did on one rank.

    Args:
        before, after: weights.
        losses: of the last step.
        counts: of skipped steps.
        attempts: for each step how many micro-batches each attempt at it had.
    """

    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    losses: dict[str, float]
    counts: dict[str, Any]
    attempts: list[list[int]]

    @property
    def update(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, float]]:
        return self.before, self.after, self.losses


def take_steps(
    world: World,
    config: dict[str, Any],
    folder: Path,
    faults: list[tuple[str, Fault | None]],
    steps: int = 1,
) -> list[Outcome]:
    """Steps from the same weights, once for each list of tasks and fault."""
    return [steps_with(world, config, folder, tasks, fault, steps) for tasks, fault in faults]


def steps_with(
    world: World,
    config: dict[str, Any],
    folder: Path,
    tasks: str,
    fault: Fault | None,
    steps: int = 1,
) -> Outcome:
    runner = MultiTaskRunner({**config, "downstream": tasks.split(",")}, folder, world=world)
    without_dropout(runner)
    attempts: list[list[int]] = []
    attempt = runner.training_step._attempt

    def counted(micro_batches: list[MicroBatch], dropped: frozenset[str]) -> Any:
        attempts[-1].append(len(micro_batches))
        return attempt(micro_batches, dropped)

    runner.training_step._attempt = counted
    if fault is not None:
        fault(world, runner)
    before = weights_of(runner)
    for _ in range(steps):
        attempts.append([])
        report = runner.train_step()
    counts = runner.run.skips.state_dict()
    return Outcome(before, weights_of(runner), report.losses, counts, attempts)


@pytest.fixture
def config(tiny_corpus: Path, manifest_cache: Path) -> dict[str, Any]:
    # Plain gradient descent with a rate of 1: the update is the clipped gradient itself.
    return make_config(
        tiny_corpus, manifest_cache, "ks,er,asr", optimizer={"name": "SGD", "lr": 1.0}
    )


# --------------------------------------------------------------- non-finite losses


def nan_on_the_last_rank(world: World, runner: MultiTaskRunner) -> None:
    if world.rank == world.size - 1:
        expert = runner.tasks["er"].expert
        forward = expert.forward
        expert.forward = lambda *args, **kwargs: forward(*args, **kwargs) * math.nan


def nan_in_the_second_draw(world: World, runner: MultiTaskRunner) -> None:
    expert = runner.tasks["er"].expert
    forward = expert.forward
    calls: list[int] = []

    def sometimes(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        loss = forward(*args, **kwargs)
        return loss * math.nan if len(calls) == 2 and world.rank == world.size - 1 else loss

    expert.forward = sometimes


@pytest.mark.parametrize(
    ("ranks", "fault", "draws", "attempts"),
    [
        (2, nan_on_the_last_rank, 1, [1, 1]),
        pytest.param(1, nan_in_the_second_draw, 2, [2, 2], marks=pytest.mark.slow),
        pytest.param(2, nan_in_the_second_draw, 2, [2, 2], marks=pytest.mark.slow),
    ],
)
def test_a_task_with_a_non_finite_loss_has_no_part_in_the_step_on_any_rank(
    ranks: int, fault: Fault, draws: int, attempts: list[int], config, tmp_path: Path
):
    config["runner"]["gradient_accumulate_steps"] = draws
    cases = [("ks,er,asr", fault), ("ks,asr", None)]
    for faulty, without in run_ranks(ranks, take_steps, config, tmp_path, cases):
        assert faulty.attempts == [attempts]
        assert faulty.counts["dropped_steps"] == {"ks": 0, "er": 1, "asr": 0}
        assert math.isnan(faulty.losses["er"]) and math.isfinite(faulty.losses["asr"])
        head = [name for name in faulty.before if name.startswith("er/")]
        assert head and all(torch.equal(faulty.before[n], faulty.after[n]) for n in head)
        # The step is the one of a run that has no such task.
        assert_same_update(without.update, faulty.update, names=list(without.before))


# -------------------------------------------------------------------- short memory

LIMIT = 40_000
"""Samples that fit at once; the batches of a step have several times as many."""


def refuse(gradient: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def short_memory(where: str, world: World, runner: MultiTaskRunner) -> None:
    """The encoder of the last rank cannot take more than LIMIT samples, or one utterance."""
    if world.rank != world.size - 1:
        return
    encode = runner.encoder.hidden_states

    def limited(wavs: list[Any], masks: Sequence[Any] = ()) -> HiddenStates:
        too_much = len(wavs) > 1 and sum(len(wav) for wav in wavs) > LIMIT
        if too_much and where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        made = encode(wavs, masks)
        if too_much:
            made.layers[-1].register_hook(refuse)
        return made

    runner.encoder.hidden_states = limited


def short_memory_forward(world: World, runner: MultiTaskRunner) -> None:
    short_memory("forward", world, runner)


def short_memory_backward(world: World, runner: MultiTaskRunner) -> None:
    short_memory("backward", world, runner)


@pytest.mark.parametrize(
    "fault", [pytest.param(short_memory_forward, marks=pytest.mark.slow), short_memory_backward]
)
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_steps_that_do_not_fit_are_divided_and_stay_the_same(
    fault: Fault, ranks: int, config, tmp_path: Path
):
    cases = [("ks,er,asr", None), ("ks,er,asr", fault)]
    by_rank = run_ranks(ranks, take_steps, config, tmp_path, cases, 2)
    for whole, divided in by_rank:
        assert whole.attempts == [[1], [1]]
        first, second = divided.attempts
        assert first == [2**n for n in range(len(first))] and len(first) > 1
        assert second[0] == first[-1], "the next step starts with as many micro-batches"
        assert divided.counts["steps_in_parts"] == 2
        assert divided.attempts == by_rank[0][1].attempts, "all ranks divide alike"
        assert divided.losses == pytest.approx(whole.losses, rel=1e-4)
        assert_same_update(whole.update, divided.update)


def no_memory(world: World, runner: MultiTaskRunner) -> None:
    def refuse_any(wavs: list[Any], masks: Sequence[Any] = ()) -> HiddenStates:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    if world.rank == 0:
        runner.encoder.hidden_states = refuse_any


def error_without_memory(world: World, config: dict[str, Any], folder: Path) -> tuple[str, str]:
    with pytest.raises(UserError) as caught:
        steps_with(world, config, folder, "ks,er,asr", no_memory)
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_memory_that_is_too_small_for_one_utterance_ends_the_run_on_all_ranks(
    ranks: int, config, tmp_path: Path
):
    for code, text in run_ranks(ranks, error_without_memory, config, tmp_path):
        assert code == "out-of-memory" and "1 utterances" in text
