"""`affinity`: losses after a step on another task, by an independent computation."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.cli.main import command_parser, main
from s3prl_mtl.training.affinity import Affinity, measure_affinity, open_run
from s3prl_mtl.training.forward import forward
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.comparison import assert_same
from tests.distributed.test_updates import make_config, weights_of, without_dropout
from tests.mistakes import user_error

TASKS = ["ks", "er", "ic"]
ADAMW = {"name": "AdamW", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.1}
SGD = {"name": "SGD", "lr": 0.01, "momentum": 0.9}


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, manifest_cache: Path, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a run of two steps with an optimizer."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            config = make_config(
                tiny_corpus,
                manifest_cache,
                ",".join(TASKS),
                optimizer={"AdamW": ADAMW, "SGD": SGD}[name],
                runner__total_steps=2,
                runner__test_last=False,
            )
            made[name] = tmp_path_factory.mktemp(name)
            MultiTaskRunner(config, made[name]).train()
        return made[name]

    return make


def opened(run: Path, folder: Path, **settings: Any) -> MultiTaskRunner:
    saved, _ = checkpoints.load_newest(run, set_aside=False)
    config = {**saved.config, "runner": {**saved.config["runner"], **settings}}
    return open_run(saved, config, folder, where=str(run))


def by_hand(run: Path, folder: Path) -> torch.Tensor:
    """The affinities of the first batch, without dropout, from the formulas of the optimizers."""
    saved = checkpoints.load(run / "states-2.ckpt")
    runner = opened(run, folder)
    without_dropout(runner)
    names = {p: name for name, p in runner.run.trained_parameters(torch.nn.Module()).items()}
    batches = {batch.task: batch for batch in runner.training_step.loaders.draw()}
    shared, tasks = runner.run.shared, runner.run.tasks

    def loss(task: str) -> torch.Tensor:
        records = {task: defaultdict(list)}
        return forward([batches[task]], tasks, runner.encoder, None, records)[0]

    weights = [parameter.detach().clone() for parameter in shared]
    result = []
    for step_on in TASKS:
        gradients = torch.autograd.grad(loss(step_on), shared, allow_unused=True)
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients if g is not None))
        scale = min(1.0, runner.config.runner.gradient_clipping / norm)
        with torch.no_grad():
            before = [loss(task).item() for task in TASKS]
            for parameter, gradient in zip(shared, gradients, strict=True):
                if gradient is None:
                    continue
                gradient = gradient * scale
                if runner.config.optimizer["name"] == "SGD":
                    parameter -= SGD["lr"] * gradient
                    continue
                state = saved.training.optimizer.state[names[parameter]]
                count = float(state["step"]) + 1
                beta1, beta2 = ADAMW["betas"]
                first = (1 - beta1) * gradient / (1 - beta1**count)
                second = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient**2
                second = second / (1 - beta2**count)
                parameter *= 1 - ADAMW["lr"] * ADAMW["weight_decay"]
                parameter -= ADAMW["lr"] * first / (second.sqrt() + 1e-8)
            result.append([1 - loss(t).item() / b for t, b in zip(TASKS, before, strict=True)])
            for parameter, value in zip(shared, weights, strict=True):
                parameter.copy_(value)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize(
    ("optimizer", "seconds"),
    [
        ("AdamW", 1.5),
        pytest.param("AdamW", None, marks=pytest.mark.slow),
        pytest.param("SGD", 1.5, marks=pytest.mark.slow),
        pytest.param("SGD", None, marks=pytest.mark.slow),
    ],
)
def test_affinities_are_those_of_the_formula(
    optimizer: str, seconds: float | None, trained: Callable[[str], Path], tmp_path: Path
):
    run = trained(optimizer)
    runner = opened(run, tmp_path, max_pass_seconds=seconds)
    without_dropout(runner)
    found = measure_affinity(runner, 1)
    assert found.tasks == TASKS and (found.values.diagonal() > 0).all()
    expected = by_hand(run, tmp_path)
    torch.testing.assert_close(found.values, expected, rtol=1e-2, atol=1e-6)


def test_the_run_is_as_before_and_the_result_is_reproducible(
    trained: Callable[[str], Path], tmp_path: Path
):
    """In training mode: with dropout, the same in all passes of a batch."""
    results = []
    for _ in range(2):
        runner = opened(trained("AdamW"), tmp_path)
        before = weights_of(runner), copy.deepcopy(_state(runner))
        results.append(measure_affinity(runner, 2).samples)
        assert_same((weights_of(runner), _state(runner)), before)
    assert torch.equal(*results)
    assert not torch.equal(results[0][0], results[0][1])


def _state(runner: MultiTaskRunner) -> dict[str, Any]:
    return runner.training_step.optimizer.state_dict()["state"]


def test_equal_tasks_have_equal_positive_affinities(trained: Callable[[str], Path], tmp_path: Path):
    runner = opened(trained("SGD"), tmp_path)
    ks, er = runner.tasks["ks"], runner.tasks["er"]
    er.expert = copy.deepcopy(ks.expert)
    batches = ks.stream.next_round()
    for task in (ks, er):
        task.stream.expert.batch_source = lambda split: None  # not read by the pool
    ks.stream.next_round = lambda: batches
    er.stream.next_round = lambda: [replace(batch, task="er") for batch in batches]
    values = measure_affinity(runner, 1).values[:2, :2]
    assert values[0, 0] > 0
    assert (values == values[0, 0]).all()


def test_means_and_standard_errors():
    samples = np.random.default_rng(0).normal(size=(5, 2, 2))
    found = Affinity(["a", "b"], torch.from_numpy(samples))
    records = found.records()
    assert [(r["step_on"], r["loss_of"]) for r in records] == list(
        itertools.product("ab", repeat=2)
    )
    errors = samples.std(axis=0, ddof=1) / 5**0.5
    for place, record in zip(np.ndindex(2, 2), records, strict=True):
        assert record["affinity"] == pytest.approx(samples.mean(axis=0)[place])
        assert record["standard_error"] == pytest.approx(errors[place])
    once = Affinity(["a", "b"], torch.from_numpy(samples[:1])).records()
    assert {record["standard_error"] for record in once} == {None}


def test_batches_with_a_loss_of_zero_are_left_out():
    samples = torch.tensor([[[0.5, math.nan]], [[0.3, 0.1]]], dtype=torch.float64)
    assert Affinity(["a", "b"], samples).values.tolist() == [[0.4, 0.1]]


def test_the_best_groups_help_each_other():
    values = torch.tensor(
        [[9, 3, -1, -1], [3, 9, -1, 1], [-1, -1, 9, 1], [-1, 0, 2, 9]], dtype=torch.float64
    )
    affinity = Affinity(list("abcd"), values[None])
    assert affinity.groups(2) == [["a", "b"], ["c", "d"]]
    assert affinity.groups(1) == [["a", "b", "c", "d"]]
    assert affinity.groups(4) == [["a"], ["b"], ["c"], ["d"]]
    assert affinity.groups(3) == [["a", "b"], ["c"], ["d"]]


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_command_writes_a_table_and_a_figure_and_leaves_the_run(
    trained: Callable[[str], Path], manifest_cache: Path, tmp_path: Path, capsys
):
    run = trained("AdamW")
    before = contents(run)
    words = ["affinity", str(run), "--steps", "1"]
    assert main([*words, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert len(records) == 9 and records[0]["affinity"] > 0
    after = contents(run)
    assert {after.pop(name)[:0] for name in ("affinity.csv", "affinity.png")} == {""}
    assert after == before
    assert main([*words, "--csv", "-o", str(tmp_path / "out"), "--lr", "0"]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "affinity.csv").read_text() == printed
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [row["step_on"] for row in rows] == [r["step_on"] for r in records]
    assert {float(row["affinity"]) for row in rows} == {0.0}
    assert (tmp_path / "out" / "affinity.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--groups", "2", "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "2 groups: " in shown and shown.count(" | ") == 1


def command(*words: str) -> None:
    arguments = command_parser("affinity").parse_args(list(words))
    arguments.action(arguments)


def test_mistakes_are_named(trained: Callable[[str], Path], tmp_path: Path):
    run = trained("AdamW")
    with user_error("checkpoint-missing", "RUN"):
        command(str(tmp_path))
    with user_error("checkpoint-missing", "RUN"):
        command(str(tmp_path / "nowhere"))
    with user_error("invalid-value", "--steps 0"):
        command(str(run), "--steps", "0")
    with user_error("invalid-value", "--groups 4"):
        command(str(run), "--groups", "4")
    with user_error("file-missing", str(tmp_path)):
        command(str(run), "--data", str(tmp_path), "--cache_dir", str(tmp_path / "cache"))
    with user_error("invalid-value", "optimizer"):
        command(str(run), "--lr", "-1")
    best = next(run.glob("*/*-best.ckpt"))
    with user_error("not-supported", best.name):
        command(str(best))


def test_a_frozen_encoder_has_no_affinities(trained: Callable[[str], Path], tmp_path: Path):
    saved, path = checkpoints.load_newest(trained("SGD"), set_aside=False)
    upstream = {
        **saved.config["upstream"],
        "freeze": True,
        "feature_selection": "last_hidden_state",
    }
    saved = replace(saved, featurizer={}, training=None)
    with user_error("not-supported", path.name):
        open_run(saved, {**saved.config, "upstream": upstream}, tmp_path, where=str(path))
