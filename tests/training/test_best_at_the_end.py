"""After training, each task's test splits are scored with its own best checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.config import Config
from s3prl_mtl.distributed.world import World
from s3prl_mtl.tracking.recorder import read_metrics, read_results, read_sources
from s3prl_mtl.tracking.results_table import results_table
from s3prl_mtl.training.evaluation import Evaluator
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.training.signals import Stopped
from tests.distributed.ranks import run_ranks
from tests.distributed.test_updates import make_config

BEST_STEPS = {"ks": 1, "er": 2}


@pytest.fixture
def config(tiny_corpus: Path, manifest_cache: Path) -> Config:
    return make_config(
        tiny_corpus,
        manifest_cache,
        "ks,er",
        runner__total_steps=2,
        runner__eval_step=1,
        runner__test_last=True,
        optimizer__lr=0.01,
        scheduler=None,
    )


def choose_best(runner: MultiTaskRunner) -> None:
    """Let each task score highest on its dev split at its step of `BEST_STEPS`."""
    for name, task in runner.tasks.items():
        measure = task.expert.measure

        def scored(split, records, name=name, measure=measure):
            values = measure(split, records)
            best = {"acc": float(runner.step == BEST_STEPS[name])}
            return values | best if split == "dev" else values

        task.expert.measure = scored


@pytest.fixture
def runner(config: Config, tmp_path: Path) -> MultiTaskRunner:
    runner = MultiTaskRunner(config, tmp_path)
    choose_best(runner)
    return runner


def test_each_task_is_tested_once_with_its_best_checkpoint(
    runner: MultiTaskRunner, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluated: list[tuple[str, str, int]] = []
    evaluate = Evaluator.evaluate

    def counted(evaluator: Evaluator, splits):
        evaluated.extend((*place, evaluator.run.step) for place in splits)
        return evaluate(evaluator, splits)

    monkeypatch.setattr(Evaluator, "evaluate", counted)
    results = runner.train()
    assert [entry for entry in evaluated if entry[1] == "test"] == [
        ("er", "test", 2),
        ("ks", "test", 1),
    ]
    assert read_sources(tmp_path)["ks"]["test"] == {"step": 1, "checkpoint": "ks/dev-best.ckpt"}
    assert read_sources(tmp_path)["er"]["test"] == {"step": 2, "checkpoint": "er/dev-best.ckpt"}
    assert read_sources(tmp_path)["featurizer"]["layer_weights"]["step"] == 2
    columns = {str(c.header): list(c.cells) for c in results_table(tmp_path).columns}
    assert columns["of"] == ["dev-best, step 1", "dev-best, step 2"]

    # The loss of the weights of step 1, and not of the last ones.
    best = checkpoints.load(tmp_path / "ks" / "dev-best.ckpt")
    again = MultiTaskRunner({**config, "downstream": ["ks"]}, tmp_path / "again", resume=best)
    (report,) = again.evaluator.evaluate([("ks", "test")])
    (last,) = runner.evaluator.evaluate([("ks", "test")])
    assert results["ks"]["test"] == report.values
    assert report.values["loss"] != last.values["loss"]


def test_the_last_weights_are_tested_where_no_best_checkpoint_can_be_read(
    runner: MultiTaskRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save, measure = checkpoints.save, runner.tasks["ks"].expert.measure

    def cut_off(checkpoint, path: Path) -> None:
        save(checkpoint, path)
        if path.parent.name == "er":
            path.write_bytes(path.read_bytes()[:1000])

    monkeypatch.setattr(checkpoints, "save", cut_off)
    runner.tasks["ks"].expert.measure = lambda split, records: (
        {"acc": math.nan} if split == "dev" else measure(split, records)
    )
    runner.train()
    assert not (tmp_path / "ks" / "dev-best.ckpt").exists()
    for task in BEST_STEPS:
        assert read_sources(tmp_path)[task]["test"] == {"step": 2, "checkpoint": None}


def test_the_last_weights_are_tested_on_request(config: Config, tmp_path: Path):
    config["runner"] |= {"test_best": False, "total_steps": 1}
    MultiTaskRunner({**config, "downstream": ["er"]}, tmp_path).train()
    assert (tmp_path / "er" / "dev-best.ckpt").is_file()
    assert read_sources(tmp_path)["er"]["test"] == {"step": 1, "checkpoint": None}


def test_a_stop_during_the_test_leaves_a_run_that_resumes_with_it(
    runner: MultiTaskRunner, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluate = Evaluator.evaluate

    def stopped(evaluator: Evaluator, splits):
        if ("ks", "test") in splits:
            evaluator.run.stop_asked = lambda: True
        return evaluate(evaluator, splits)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Evaluator, "evaluate", stopped)
        runner.train()
    assert "test" not in read_results(tmp_path)["ks"]
    saved = checkpoints.load(tmp_path / "states-2.ckpt")
    MultiTaskRunner(config, tmp_path, resume=saved).train()
    assert read_sources(tmp_path)["ks"]["test"] == {"step": 1, "checkpoint": "ks/dev-best.ckpt"}
    numbers = [e for e in read_metrics(tmp_path) if e["split"] == "dev" and e["metric"] == "acc"]
    assert len(numbers) == 4, "two tasks at two steps: no evaluation is repeated"


def train(world: World, config: Config, folder: Path) -> None:
    runner = MultiTaskRunner(config, folder, world=world)
    choose_best(runner)
    runner.train()


@pytest.mark.slow
@pytest.mark.parametrize("placement", [None, "0:ks;1:er"])
def test_two_ranks_test_the_same_checkpoints_together(
    placement: str | None, config: Config, tmp_path: Path
):
    config["distributed"]["placement"] = placement
    run_ranks(2, train, config, tmp_path)
    sources = json.loads((tmp_path / "results.json").read_text())["_source"]
    for task, step in BEST_STEPS.items():
        assert sources[task]["test"] == {"step": step, "checkpoint": f"{task}/dev-best.ckpt"}
    best = checkpoints.load(tmp_path / "ks" / "dev-best.ckpt")
    one = {**config, "downstream": ["ks"], "distributed": {"parallel": "data", "placement": None}}
    alone = MultiTaskRunner(one, tmp_path / "alone", resume=best)
    (report,) = alone.evaluator.evaluate([("ks", "test")])
    assert read_results(tmp_path)["ks"]["test"] == report.values
