"""`--log_conflicts`: the gradients of the tasks are compared, and the training stays the same."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from s3prl_mtl.data.randomness import random_state
from s3prl_mtl.distributed.world import World
from s3prl_mtl.tracking.recorder import read_metrics
from s3prl_mtl.tracking.results_table import read_run
from s3prl_mtl.training import conflicts
from s3prl_mtl.training.conflicts import Gramians
from s3prl_mtl.training.forward import forward
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.upstreams import Upstream
from tests.comparison import assert_same
from tests.distributed.ranks import run_ranks
from tests.distributed.test_updates import give_batches, make_config, weights_of, without_dropout

TASKS = ["ks", "er", "ic"]


@pytest.fixture
def config(tiny_corpus: Path, manifest_cache: Path) -> dict[str, Any]:
    flags = {"runner.log_conflicts": 1, "runner.test_last": False, "runner.eval_step": 1000}
    return make_config(tiny_corpus, manifest_cache, ",".join(TASKS), **flags)


def by_hand(runner: MultiTaskRunner, draws: int = 1) -> dict[str, torch.Tensor]:
    """Inner products of the gradients by torch, by group of layers, on the next batches."""
    run = runner.run
    groups = {
        "front_end": lambda name: name.startswith("feature_extractor."),
        "layer_2": lambda name: "encoder.layers.1." in name,
        "all": lambda name: True,
    }
    names = [name for name, p in runner.upstream.named_parameters() if p.requires_grad]
    names += ["featurizer"]
    batches = [runner.training_step.loaders.draw() for _ in range(draws)]
    rows: dict[str, list[torch.Tensor]] = {}
    for task in TASKS:
        loss = torch.zeros(())
        for draw in batches:
            own = [batch for batch in draw if batch.task == task]
            losses = forward(own, run.tasks, run.encoder, None, {task: _Ignored()})
            weights = [batch.utterances / sum(b.utterances for b in own) for batch in own]
            loss = loss + sum(w * one for w, one in zip(weights, losses, strict=True)) / draws
        found = torch.autograd.grad(loss, run.shared, allow_unused=True)
        rows[task] = [
            torch.zeros_like(p) if g is None else g for p, g in zip(run.shared, found, strict=True)
        ]
    products = {}
    for group, belongs in groups.items():
        flat = torch.stack(
            [
                torch.cat(
                    [g.flatten() for n, g in zip(names, rows[task], strict=True) if belongs(n)]
                )
                for task in TASKS
            ]
        ).double()
        products[group] = flat @ flat.T
    return products


class _Ignored(dict):
    def __missing__(self, key: str) -> list[object]:
        return []


def assert_close(found: Gramians, expected: dict[str, torch.Tensor]) -> None:
    for group, products in expected.items():
        norms = products.diagonal().sqrt()
        torch.testing.assert_close(found.norms(group), norms, rtol=1e-4, atol=0)
        cosines = products / norms / norms[:, None]
        torch.testing.assert_close(found.cosines(group), cosines, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulate_steps": 2}, {"max_pass_seconds": 1.5}, {"balancer": "pcgrad"}],
    ids=str,
)
def test_cosines_and_norms_are_those_of_each_tasks_loss(
    settings: dict[str, Any], config: dict[str, Any], tmp_path: Path
):
    settings = dict(settings)
    config["balancer"] = {"name": settings.pop("balancer", "sum")}
    config["runner"] |= settings
    runner = MultiTaskRunner(config, tmp_path / "other")
    without_dropout(runner)
    expected = by_hand(runner, settings.get("gradient_accumulate_steps", 1))
    runner = MultiTaskRunner(config, tmp_path / "run")
    without_dropout(runner)
    found = runner.train_step().gramians
    assert found is not None and list(found.tasks) == TASKS
    assert list(found.groups) == ["all", "front_end", "layer_1", "layer_2", "layer_3", "featurizer"]
    assert_close(found, expected)
    assert (runner.run.skips.steps_in_parts > 0) == ("max_pass_seconds" in settings)


def test_a_balancer_of_gradients_is_not_asked_for_further_passes(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(conflicts, "loss_of", None)
    config["balancer"] = {"name": "pcgrad"}
    assert MultiTaskRunner(config, tmp_path).train_step().gramians is not None


def count_calls(runner: MultiTaskRunner) -> None:
    """Give each expert a buffer that every forward pass changes, as statistics of a norm."""

    def count(expert: Any, _: object) -> None:
        expert.calls += 1

    for task in runner.tasks.values():
        task.expert.register_buffer("calls", torch.zeros(()))
        task.expert.register_forward_pre_hook(count)


def steps(world: World, config: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Everything that training has changed after two steps, with the measurement and without."""
    outcomes = []
    for every in (1, 0):
        config = {**config, "runner": {**config["runner"], "log_conflicts": every}}
        runner = MultiTaskRunner(config, folder / str(every), world=world)
        count_calls(runner)
        reports = [runner.train_step() for _ in range(2)]
        assert all((report.gramians is not None) == (every == 1) for report in reports)
        outcomes.append(
            {
                "weights": weights_of(runner),
                "buffers": [dict(t.expert.named_buffers()) for t in runner.tasks.values()],
                "losses": [report.losses for report in reports],
                "random": random_state(),
                "optimizer": runner.training_step.optimizer.state_dict(),
                "records": {n: sorted(t.records) for n, t in runner.tasks.items()},
            }
        )
    return outcomes


@pytest.mark.parametrize("balancer", ["sum", "pcgrad"])
def test_the_training_is_the_same_to_the_last_bit(
    balancer: str, config: dict[str, Any], tmp_path: Path
):
    config["balancer"] = {"name": balancer}
    with_it, without = steps(World(), config, tmp_path)
    assert_same(with_it, without)


@pytest.mark.slow
@pytest.mark.parametrize("placement", [None, "0:ks;1:er,ic"])
@pytest.mark.parametrize("balancer", ["sum", "pcgrad", "famo"])
def test_the_training_of_two_ranks_is_the_same_to_the_last_bit(
    balancer: str, placement: str | None, config: dict[str, Any], tmp_path: Path
):
    config["balancer"] = {"name": balancer}
    if placement:
        config["distributed"] = {"parallel": "task", "placement": placement}
    for with_it, without in run_ranks(2, steps, config, tmp_path):
        assert_same(with_it, without)


def measured(world: World, config: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    runner = MultiTaskRunner(config, folder, world=world)
    without_dropout(runner)
    if not config["distributed"]["placement"]:
        give_batches(runner, range(world.rank, 4, world.size), as_one=world.size == 1)
    found = runner.train_step().gramians
    assert found is not None
    return dict(found.groups)


@pytest.mark.slow
def test_two_ranks_measure_the_gradients_of_one_process(config: dict[str, Any], tmp_path: Path):
    (alone,) = run_ranks(1, measured, config, tmp_path / "one")
    for rank in run_ranks(2, measured, config, tmp_path / "two"):
        assert_close(Gramians(TASKS, rank), alone)


@pytest.mark.slow
def test_task_parallel_ranks_measure_the_gradients_of_data_parallel_ones(
    config: dict[str, Any], tmp_path: Path
):
    results = []
    for placement in ("0:ks,er,ic;1:ks,er,ic", "0:ks;1:er,ic"):
        config["distributed"] = {"parallel": "task", "placement": placement}
        results.append(run_ranks(2, measured, config, tmp_path / placement[-3:]))
    for rank in results[1]:
        assert_close(Gramians(TASKS, rank), results[0][0])


def test_too_little_memory_skips_the_measurement_with_one_warning(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    without = MultiTaskRunner(
        {**config, "runner": {**config["runner"], "log_conflicts": 0}}, tmp_path / "without"
    )
    runner = MultiTaskRunner(config, tmp_path / "with")

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    for one in (without, runner):
        torch.manual_seed(0)
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(conflicts, "gradients_of", fail)
            assert [one.train_step().gramians for _ in range(2)] == [None, None]
    assert_same(weights_of(runner), weights_of(without))
    assert [r.name for r in caplog.records].count(conflicts.__name__) == 1


def test_a_run_logs_the_numbers_and_draws_them(config: dict[str, Any], tmp_path: Path):
    config["runner"] |= {"log_conflicts": 2, "total_steps": 4}
    MultiTaskRunner(config, tmp_path).train()
    lines = [entry for entry in read_metrics(tmp_path) if entry["task"] == "gradients"]
    assert {entry["step"] for entry in lines} == {2, 4}
    last = {entry["metric"]: entry["value"] for entry in lines if entry["split"] == "all"}
    cosines = [last[f"cosine_{pair}"] for pair in ("ks-er", "ks-ic", "er-ic")]
    assert all(-1 <= value <= 1 for value in cosines)
    assert last["conflicting_pairs"] == pytest.approx(sum(value < 0 for value in cosines) / 3)
    assert all(last[f"norm_{task}"] > 0 for task in TASKS)
    assert (tmp_path / "conflicts.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Images("conflicts")) == 2
    assert len(events.Scalars("gradients/featurizer-cosine_ks-er")) == 2
    assert "gradients" not in {result.task for result in read_run(tmp_path, everything=True)}


def test_a_task_without_a_gradient_has_no_cosines():
    products = torch.tensor([[4.0, 0.0, -2.0], [0.0, 0.0, 0.0], [-2.0, 0.0, 4.0]]).double()
    values = Gramians(["a", "b", "c"], {"all": products}).scalars("all")
    assert values["cosine_a-c"] == -0.5 and values["norm_b"] == 0
    assert math.isnan(values["cosine_a-b"]) and values["conflicting_pairs"] == 1


@pytest.mark.parametrize("reason", ["one task", "frozen"])
def test_without_two_tasks_on_the_same_parameters_there_is_a_warning(
    reason: str, config: dict[str, Any], tmp_path: Path, caplog
):
    config["runner"]["total_steps"] = 1
    if reason == "one task":
        config["downstream"] = ["ks"]
    else:
        config["upstream"] |= {"freeze": True, "feature_selection": "last_hidden_state"}
    with caplog.at_level(logging.WARNING):
        MultiTaskRunner(config, tmp_path).train()
    assert any("--log_conflicts" in record.getMessage() for record in caplog.records)
    assert not any(entry["task"] == "gradients" for entry in read_metrics(tmp_path))


class Layered(Upstream):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers

    def parameter_layers(self) -> dict[str, int]:
        return {str(layer): layer for layer in range(self.layers + 1)}

    def forward(self, wavs: list[torch.Tensor]) -> Any: ...


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (3, ["front_end", "layer_1", "layer_2", "layer_3"]),
        (12, ["front_end", "layers_1-3", "layers_4-6", "layers_7-9", "layers_10-12"]),
        (6, ["front_end", "layer_1", "layers_2-3", "layer_4", "layers_5-6"]),
    ],
)
def test_layers_are_in_at_most_four_groups(layers: int, names: list[str]):
    found = conflicts._names_of_layers(Layered(layers))
    assert len(found) == layers + 1
    assert list(dict.fromkeys(found)) == names
