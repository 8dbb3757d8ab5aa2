"""A run of several ranks goes on from its checkpoint as if it had not been interrupted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.distributed.world import World
from s3prl_mtl.tracking.tracker import read_metrics
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.comparison import assert_same
from tests.distributed.ranks import run_ranks
from tests.distributed.test_updates import make_config


def train(world: World, config: dict[str, Any], folder: Path, resume: Path | None) -> list[str]:
    """Train to the end; what was said about the change of processes."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logging.getLogger("s3prl_mtl.training.state").addHandler(Listener())
    saved = checkpoints.load(resume) if resume is not None else None
    torch.rand(17 + world.rank)  # chance must come from the checkpoint, not from what ran before
    MultiTaskRunner(config, folder, resume=saved, world=world).train()
    return said


@pytest.fixture
def config(tiny_corpus: Path, manifest_cache: Path) -> dict[str, Any]:
    return make_config(
        tiny_corpus,
        manifest_cache,
        "ks,asr,sv,sd",
        runner__total_steps=8,
        runner__save_step=4,
        runner__log_step=2,
        runner__eval_step=4,
        runner__test_last=False,
        runner__max_keep=9,
    )


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [(2, "data"), (2, "task"), (3, "data"), pytest.param(4, "task", marks=pytest.mark.slow)],
)
def test_the_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    ranks: int, parallel: str, config: dict[str, Any], tmp_path: Path
):
    config["distributed"]["parallel"] = parallel
    run_ranks(ranks, train, config, tmp_path / "whole", None)
    half = tmp_path / "whole" / "states-4.ckpt"
    said = run_ranks(ranks, train, config, tmp_path / "resumed", half)
    assert said == [[]] * ranks, "nothing is inexact"
    whole = checkpoints.load(tmp_path / "whole" / "states-8.ckpt")
    resumed = checkpoints.load(tmp_path / "resumed" / "states-8.ckpt")
    assert any(task["Stream"]["epoch"] > 0 for task in whole["Tasks"].values())
    assert len(whole["Random"]) == ranks
    assert_same(whole, resumed)
    later = [e for e in read_metrics(tmp_path / "whole") if e["step"] > 4]
    assert [e for e in read_metrics(tmp_path / "resumed") if e["step"] > 4] == later


def take_up(
    world: World, config: dict[str, Any], folder: Path, resume: Path
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The state of a resumed run before its first step, and where each task's data stands."""
    saved = checkpoints.load(resume)
    runner = MultiTaskRunner(config, folder, resume=saved, world=world)
    runner.evaluated_step = saved["EvaluatedStep"]
    runner.run_state.restore_training(saved)
    state = runner.state()
    streams = {name: task.stream.state_dict() for name, task in runner.tasks.items()}
    return state, streams


@pytest.mark.parametrize(
    ("before", "now"), [(1, 2), (2, 1), pytest.param(2, 3, marks=pytest.mark.slow)]
)
def test_with_other_ranks_it_keeps_all_but_chance_and_says_so(
    before: int, now: int, config: dict[str, Any], tmp_path: Path
):
    run_ranks(before, train, config, tmp_path / "run", None)
    path = tmp_path / "run" / "states-4.ckpt"
    saved = checkpoints.load(path)
    states = run_ranks(now, take_up, config, tmp_path / "next", path)
    taken = states[0][0]
    for key in ("Step", "Upstream", "Featurizer", "Optimizer", "Scheduler", "Tallies"):
        assert_same(saved[key], taken[key], key)
    for name, task in saved["Tasks"].items():
        assert_same(task["Downstream"], taken["Tasks"][name]["Downstream"], name)
        old, new = task["Stream"], taken["Tasks"][name]["Stream"]
        assert new["epoch"] == old["epoch"]
        had, has = old["round"] * before, new["round"] * now
        assert had - now < has <= had, "no batch is left out, and few come again"

    said = run_ranks(now, train, config, tmp_path / "on", path)[0]
    assert "goes on with" in said[0] and "step, weights, optimizer" in said[0]
    assert checkpoints.load(tmp_path / "on" / "states-8.ckpt")["Step"] == 8


def test_from_data_to_task_parallel_the_batches_go_on_as_they_were(
    config: dict[str, Any], tmp_path: Path
):
    run_ranks(2, train, config, tmp_path / "run", None)
    path = tmp_path / "run" / "states-4.ckpt"
    config["distributed"] = {"parallel": "task", "placement": "0:ks,sd;1:asr,sv"}
    states = run_ranks(2, take_up, config, tmp_path / "next", path)
    saved = checkpoints.load(path)
    streams = {name: place for _, own in states for name, place in own.items()}
    assert streams == {name: task["Stream"] for name, task in saved["Tasks"].items()}
    assert_same(saved["Optimizer"], states[0][0]["Optimizer"], "Optimizer")
