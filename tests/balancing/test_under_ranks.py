"""A balancer makes the same update on one process, on two ranks and in micro-batches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl.balancing import Balancer, Sum, make_balancer
from s3prl_mtl.balancing.factory import BUILT_IN
from s3prl_mtl.balancing.torchjd_methods import torchjd_methods
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.distributed.world import World
from s3prl_mtl.tracking.recorder import read_metrics
from s3prl_mtl.training import step as training_step
from s3prl_mtl.training.microbatch import MicroBatch
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.balancing.balancers import FixedWeights, LearnedWeights, PCGrad
from tests.comparison import assert_same
from tests.distributed.ranks import run_ranks
from tests.distributed.test_updates import (
    assert_same_update,
    give_batches,
    make_config,
    weights_of,
    without_dropout,
)

TASKS = "asr,ks,er"


Kind = type[Balancer] | dict[str, Any]
"""A class, or the section of a config."""

Outcome = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, float]]
"""Weights before and after a step, and its losses."""


def step_of(runner: MultiTaskRunner) -> Outcome:
    before = weights_of(runner)
    report = runner.train_step()
    return before, weights_of(runner), report.losses


def balanced_steps(
    world: World, config: dict[str, Any], folder: Path, cases: list[tuple[Kind, int]]
) -> list[Outcome]:
    """For each balancer and number of micro-batches, a step from the same weights and batches."""
    outcomes = []
    for kind, parts in cases:
        tasks = config["downstream"]
        balancer = kind(tasks) if isinstance(kind, type) else make_balancer(kind, tasks, seed=3)
        runner = MultiTaskRunner(config, folder, world=world, balancer=balancer)
        without_dropout(runner)
        if "er" in runner.tasks:  # its gradient conflicts with those of others in the encoder
            next(runner.tasks["er"].expert.parameters()).data.neg_()
        if not config["distributed"]["placement"]:
            give_batches(runner, range(world.rank, 4, world.size), as_one=world.size == 1)
        runner.training_step.micro_batcher.parts = parts
        outcomes.append(step_of(runner))
    return outcomes


@pytest.fixture
def config(tiny_corpus: Path, manifest_cache: Path) -> dict[str, Any]:
    # Plain gradient descent with a rate of 1: the update is the clipped gradient itself.
    return make_config(tiny_corpus, manifest_cache, TASKS, optimizer={"name": "SGD", "lr": 1.0})


KINDS = [FixedWeights, PCGrad]


def test_the_update_is_that_of_one_process_on_whole_batches(config: dict[str, Any], tmp_path: Path):
    cases = [(kind, parts) for kind in KINDS for parts in (1, 2)]
    (alone,) = run_ranks(1, balanced_steps, config, tmp_path / "one", [*cases, (Sum, 1)])
    on_two = run_ranks(2, balanced_steps, config, tmp_path / "two", cases)
    summed = alone.pop()
    for first, kind in zip((0, 2), KINDS, strict=True):
        whole = alone[first]
        with pytest.raises(AssertionError):
            assert_same_update(summed, whole)
        outcomes = [alone[first + 1], *(rank[first + i] for rank in on_two for i in (0, 1))]
        for outcome in outcomes:
            assert_same_update(whole, outcome)
            assert outcome[2] == pytest.approx(whole[2], rel=1e-5), kind
    for one, other in zip(*on_two, strict=True):
        for name, value in one[1].items():
            assert torch.equal(value, other[1][name]), "the ranks have drifted apart"


@pytest.mark.slow
def test_gradients_kept_in_bfloat16_or_on_the_cpu_make_nearly_the_same_update(
    config: dict[str, Any], tmp_path: Path
):
    cases = [({"name": "pcgrad", "gradients": kept}, 1) for kept in ("float32", "cpu", "bfloat16")]
    (alone,) = run_ranks(1, balanced_steps, config, tmp_path / "one", cases)
    on_two = run_ranks(2, balanced_steps, config, tmp_path / "two", cases)
    before, whole, _ = alone[0]
    for outcomes in ([alone[1]], *([rank[0], rank[1]] for rank in on_two)):
        for outcome in outcomes:
            assert_same_update(alone[0], outcome)
    for _, rounded, _ in (alone[2], *(rank[2] for rank in on_two)):
        assert not all(torch.equal(rounded[name], whole[name]) for name in whole)
        changes = [
            torch.cat([(after[n] - before[n]).flatten() for n in before if n.startswith("encoder")])
            for after in (whole, rounded)
        ]
        assert (changes[1] - changes[0]).norm() < 0.02 * changes[0].norm()


BY_TASK = {"asr": 0.5, "ks": 1.0, "er": 2.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "cagrad": {"c": 0.5},
    "constant": {"weights": BY_TASK},
    "cosmos": {"lambda_": 0.5, "weights": BY_TASK},
    "fairgrad": {"alpha": 2.0},
    "fixed": BY_TASK,
    "krum": {"n_byzantine": 0},
    "pbi": {"theta": 2, "weights": BY_TASK},
    "stch": {"mu": 0.5},
    "trimmedmean": {"trim_number": 1},
}


def by_name() -> list[dict[str, Any]]:
    """Every balancer of this package and of torchjd whose packages are installed."""
    methods = {name: method.missing_package() for name, method in torchjd_methods().items()}
    names = [*BUILT_IN, *(n for n, missing in methods.items() if n not in BUILT_IN and not missing)]
    kinds = [{"name": name, **OPTIONS.get(name, {})} for name in names]
    return [*kinds, {"name": "pcgrad", "per_parameter": True}]


@pytest.mark.slow
def test_balancers_by_name_make_the_update_of_one_process(config: dict[str, Any], tmp_path: Path):
    cases = [(kind, 1) for kind in by_name()]
    (alone,) = run_ranks(1, balanced_steps, config, tmp_path / "one", cases, seconds=300)
    on_two = run_ranks(
        2, balanced_steps, config, tmp_path / "two", [(kind, 2) for kind, _ in cases], seconds=300
    )
    for number, whole in enumerate(alone):
        for rank in on_two:
            assert_same_update(whole, rank[number])
    for one, other in zip(*on_two, strict=True):
        for name, value in one[1].items():
            assert torch.equal(value, other[1][name]), "the ranks have drifted apart"


@pytest.mark.slow
def test_task_parallel_ranks_make_the_update_of_data_parallel_ones(
    config: dict[str, Any], tmp_path: Path
):
    for task in config["downstream"]:
        config[task]["downstream_expert"]["datarc"]["train_batch_size"] = 1
    some = ("uncertainty", "pcgrad", "gradvac", "graddrop", "famo", "random", "uw")
    kinds = [kind for kind in by_name() if kind["name"] in some]
    cases = [(kind, 1) for kind in [*KINDS, *kinds]]
    config["distributed"] = {"parallel": "task", "placement": "0:asr,ks,er;1:asr,ks,er"}
    by_data, _ = run_ranks(2, balanced_steps, config, tmp_path / "data", cases)
    config["distributed"] = {"parallel": "task", "placement": "0:asr;1:ks,er"}
    for rank in run_ranks(2, balanced_steps, config, tmp_path / "task", cases):
        for expected, outcome in zip(by_data, rank, strict=True):
            assert_same_update(expected, outcome, names=outcome[0])


def step_with_a_late_drop(
    world: World, config: dict[str, Any], folder: Path
) -> tuple[Outcome, Outcome]:
    """A step in which the second loss of er on the last rank is not finite; one without er."""
    outcomes = []
    for tasks in (["asr", "ks", "er"], ["asr", "ks"]):
        settings = {**config, "downstream": tasks}
        runner = MultiTaskRunner(settings, folder, world=world, balancer=PCGrad(tasks))
        without_dropout(runner)
        if "er" in runner.tasks and world.rank == world.size - 1:
            expert = runner.tasks["er"].expert
            forward, calls = expert.forward, iter([1.0])

            def broken(*args: Any, forward=forward, calls=calls, **kwargs: Any) -> torch.Tensor:
                return forward(*args, **kwargs) * next(calls, math.nan)

            expert.forward = broken
        outcomes.append(step_of(runner))
    return outcomes[0], outcomes[1]


@pytest.mark.slow
def test_a_task_that_is_dropped_late_has_no_part_in_the_combined_gradient(
    config: dict[str, Any], tmp_path: Path
):
    config["runner"]["gradient_accumulate_steps"] = 2
    for outcome, without in run_ranks(2, step_with_a_late_drop, config, tmp_path):
        assert math.isnan(outcome[2]["er"]) and math.isfinite(outcome[2]["ks"])
        assert_same_update(without, outcome, names=list(without[0]))


def one_task_steps(world: World, config: dict[str, Any], folder: Path) -> list[list[str]]:
    """The tasks of each pass of the encoder in a step with PCGrad."""
    runner = MultiTaskRunner(config, folder, world=world, balancer=PCGrad(config["downstream"]))
    passes: list[list[str]] = []
    forward_pass = training_step.forward_pass

    def note(run: Run, micro_batch: MicroBatch, *rest: Any) -> Any:
        passes.append([batch.task for batch in micro_batch.batches])
        return forward_pass(run, micro_batch, *rest)

    training_step.forward_pass = note  # in this process, which ends with the function
    runner.train_step()
    return passes


@pytest.mark.slow
def test_each_rank_encodes_its_own_tasks_one_after_the_other(
    config: dict[str, Any], tmp_path: Path
):
    assert run_ranks(1, one_task_steps, config, tmp_path) == [[["asr"], ["ks"], ["er"]]]
    config["distributed"] = {"parallel": "task", "placement": "0:asr;1:ks,er"}
    by_rank = run_ranks(2, one_task_steps, config, tmp_path)
    # A rank has two shares of a task that it has alone.
    assert by_rank == [[["asr", "asr"], []], [["ks", "ks"], ["er", "er"]]]


def train(world: World, config: dict[str, Any], folder: Path, resume: Path | None) -> None:
    saved = checkpoints.load(resume) if resume is not None else None
    torch.rand(17 + world.rank)
    is_named = config["balancer"]["name"] != "sum"
    balancer = None if is_named else LearnedWeights(config["downstream"])
    MultiTaskRunner(config, folder, resume=saved, world=world, balancer=balancer).train()


def long_config(corpus: Path, cache: Path, **flags: Any) -> dict[str, Any]:
    """Four steps with a checkpoint after two."""
    return make_config(
        corpus,
        cache,
        "ks,er",
        optimizer={"name": "AdamW", "lr": 1e-2},
        runner__total_steps=4,
        runner__save_step=2,
        runner__log_step=1,
        runner__test_last=False,
        runner__max_keep=9,
        **flags,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["pcgrad:per_parameter=true", "gradvac", "excessmtl", "famo", "dwa:epoch_steps=1", "uw"]
)
def test_a_run_with_a_balancer_is_resumed_bit_for_bit(
    name: str, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = long_config(tiny_corpus, manifest_cache, balancer=name)
    train(World(), config, tmp_path / "whole", None)
    half, end = (tmp_path / "whole" / f"states-{step}.ckpt" for step in (2, 4))
    train(World(), config, tmp_path / "resumed", half)
    assert_same(checkpoints.load(end), checkpoints.load(tmp_path / "resumed" / "states-4.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("name", "sampling"),
    [("uw", "uniform"), ("imtll", "every:2"), ("dwa:epoch_steps=1", "every:2")],
)
def test_weights_are_learned_from_steps_with_some_tasks_and_resumed_bit_for_bit(
    ranks: int, name: str, sampling: str, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = long_config(
        tiny_corpus, manifest_cache, balancer=name, runner__sampling=sampling, seed=1
    )
    run_ranks(ranks, train, config, tmp_path / "whole", None)
    half, end = (tmp_path / "whole" / f"states-{step}.ckpt" for step in (2, 4))
    run_ranks(ranks, train, config, tmp_path / "resumed", half)
    whole = checkpoints.load(end)
    assert_same(whole, checkpoints.load(tmp_path / "resumed" / "states-4.ckpt"))
    balancer = whole.training.balancer
    if name.startswith("dwa"):
        # Two epochs of two steps, each with both tasks.
        history = balancer["_extra_state"]["state"][""]["_previous_averages"]
        assert len(history) == 2
    else:
        assert balancer["learned.0"].count_nonzero() == 2


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_learned_weights_are_trained_logged_saved_and_resumed_bit_for_bit(
    ranks: int, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = long_config(tiny_corpus, manifest_cache)
    run_ranks(ranks, train, config, tmp_path / "whole", None)
    half, end = (tmp_path / "whole" / f"states-{step}.ckpt" for step in (2, 4))
    run_ranks(ranks, train, config, tmp_path / "resumed", half)
    whole = checkpoints.load(end)
    assert_same(whole, checkpoints.load(tmp_path / "resumed" / "states-4.ckpt"))
    learned = whole.training.balancer["log_variances"]
    assert learned.count_nonzero() == 2
    assert not torch.equal(learned, checkpoints.load(half).training.balancer["log_variances"])
    logged = {e["metric"]: e["value"] for e in read_metrics(tmp_path / "whole")}
    expected = (-learned).exp().tolist()
    assert [logged["weight_ks"], logged["weight_er"]] == pytest.approx(expected)
