"""A resumed run of several ranks equals an uninterrupted one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.distributed.world import World
from s3prl_mtl.tracking.recorder import read_metrics
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.comparison import assert_same
from tests.distributed.ranks import run_ranks
from tests.distributed.test_updates import make_config


def train(
    world: World, config: dict[str, Any], folder: Path, resume: Path | None
) -> list[tuple[Any, ...]]:
    """Train to the end; the arguments of each warning about a change of processes."""
    warnings: list[tuple[Any, ...]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.args)

    logging.getLogger("s3prl_mtl.training.state").addHandler(Listener())
    saved = checkpoints.load(resume) if resume is not None else None
    torch.rand(17 + world.rank)  # the random state has to come from the checkpoint
    MultiTaskRunner(config, folder, resume=saved, world=world).train()
    return warnings


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        (2, "data"),
        (2, "task"),
        (3, "data"),
        (4, "task"),
    ],
)
def test_the_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    ranks: int, parallel: str, config: dict[str, Any], tmp_path: Path
):
    config["distributed"]["parallel"] = parallel
    run_ranks(ranks, train, config, tmp_path / "whole", None)
    half = tmp_path / "whole" / "states-4.ckpt"
    warnings = run_ranks(ranks, train, config, tmp_path / "resumed", half)
    assert warnings == [[]] * ranks
    whole = checkpoints.load(tmp_path / "whole" / "states-8.ckpt")
    resumed = checkpoints.load(tmp_path / "resumed" / "states-8.ckpt")
    assert any(place["epoch"] > 0 for place in whole.training.streams.values())
    assert len(whole.training.random) == ranks
    assert_same(whole, resumed)
    later = [e for e in read_metrics(tmp_path / "whole") if e["step"] > 4]
    assert [e for e in read_metrics(tmp_path / "resumed") if e["step"] > 4] == later


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["data", "task"])
@pytest.mark.parametrize("last_frozen", [2, 4, 6])
def test_rates_by_part_and_an_unfrozen_encoder_resume_bit_for_bit(
    parallel: str, last_frozen: int, config: dict[str, Any], tmp_path: Path
):
    config["distributed"]["parallel"] = parallel
    config["runner"]["unfreeze_after"] = last_frozen
    encoder = {"lr": 1e-3, "layer_decay": 0.5, "num_warmup_steps": 1}
    config["optimizer"]["groups"] = {"encoder": encoder, "ks": {"lr": 1e-2}, "sd": {"lr": 1e-4}}
    config["scheduler"] = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 2}
    run_ranks(2, train, config, tmp_path / "whole", None)
    half = tmp_path / "whole" / "states-4.ckpt"
    run_ranks(2, train, config, tmp_path / "resumed", half)
    whole = checkpoints.load(tmp_path / "whole" / "states-8.ckpt")
    assert_same(whole, checkpoints.load(tmp_path / "resumed" / "states-8.ckpt"))
    rates = {part: group["initial_lr"] for part, group in whole.training.optimizer.groups.items()}
    assert rates["heads/ks"] == 1e-2 and rates["heads/sd"] == 1e-4
    assert rates["encoder/3"] == 1e-3 and rates["encoder/0"] == 1e-3 / 8


def resume(
    world: World, config: dict[str, Any], folder: Path, path: Path
) -> tuple[RunCheckpoint | None, dict[str, Any]]:
    """The state of a resumed run before its first step, and the position of each task."""
    saved = checkpoints.load(path)
    runner = MultiTaskRunner(config, folder, resume=saved, world=world)
    runner.evaluated_step = saved.training.evaluated_step
    runner.run_state.restore_training(saved.training)
    state = runner.state()
    streams = {name: task.stream.state_dict() for name, task in runner.tasks.items()}
    return state, streams


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "now"),
    [(1, 2), (2, 1), (2, 3)],
)
def test_other_ranks_keep_all_but_the_random_state_and_log_this(
    before: int, now: int, config: dict[str, Any], tmp_path: Path
):
    run_ranks(before, train, config, tmp_path / "run", None)
    path = tmp_path / "run" / "states-4.ckpt"
    saved = checkpoints.load(path)
    states = run_ranks(now, resume, config, tmp_path / "next", path)
    taken = states[0][0]
    for part in ("step", "upstream", "featurizer", "skips"):
        assert_same(getattr(saved, part), getattr(taken, part), part)
    for part in ("optimizer", "scheduler"):
        assert_same(getattr(saved.training, part), getattr(taken.training, part), part)
    for name, task in saved.tasks.items():
        assert_same(task.head, taken.tasks[name].head, name)
        old, new = saved.training.streams[name], taken.training.streams[name]
        assert new["epoch"] == old["epoch"]
        had, has = old["round"] * before, new["round"] * now
        assert had - now < has <= had, "no batch is skipped, and few are repeated"

    warnings = run_ranks(now, train, config, tmp_path / "on", path)[0]
    assert warnings[0] == (before, now, now, before)
    assert checkpoints.load(tmp_path / "on" / "states-8.ckpt").step == 8


@pytest.mark.slow
def test_from_data_to_task_parallel_the_batches_stay_the_same(
    config: dict[str, Any], tmp_path: Path
):
    run_ranks(2, train, config, tmp_path / "run", None)
    path = tmp_path / "run" / "states-4.ckpt"
    config["distributed"] = {"parallel": "task", "placement": "0:ks,sd;1:asr,sv"}
    states = run_ranks(2, resume, config, tmp_path / "next", path)
    saved = checkpoints.load(path)
    streams = {name: place for _, own in states for name, place in own.items()}
    assert streams == saved.training.streams
    assert_same(saved.training.optimizer, states[0][0].training.optimizer, "optimizer")
