"""A split that cannot be scored does not take the results of the others with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3prl_mtl.errors import UserError
from s3prl_mtl.tracking.recorder import Recorder, read_metrics, read_results
from s3prl_mtl.tracking.results_table import results_table
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.distributed.test_updates import make_config
from tests.mistakes import user_error


@pytest.fixture
def runner(tiny_corpus: Path, manifest_cache: Path, tmp_path: Path) -> MultiTaskRunner:
    config = make_config(tiny_corpus, manifest_cache, "er,ks,sid", runner__total_steps=1)
    config["runner"]["test_last"] = True
    return MultiTaskRunner(config, tmp_path)


def undefined() -> dict[str, float]:
    raise UserError("No trials.", where="trials.txt", fix="Add some.", code="undefined-metric")


def not_a_number() -> dict[str, float]:
    return {"acc": math.nan}


def of_another_package() -> dict[str, float]:
    class OwnError(UserError):
        def __init__(self) -> None:
            super().__init__("No labels.", where="labels.txt")
            self.local = lambda: None  # cannot be pickled

    raise OwnError


def break_scoring(
    runner: MultiTaskRunner, task: str, split: str, outcome: Callable[[], dict[str, float]]
) -> None:
    """Give one split of a task this outcome of `measure`."""
    expert = runner.tasks[task].expert
    measure = expert.measure
    expert.measure = lambda name, records: outcome() if name == split else measure(name, records)


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("outcome", [undefined, not_a_number, of_another_package])
def test_the_other_tasks_are_scored_saved_and_shown(
    outcome: Callable[[], dict[str, float]], split: str, runner: MultiTaskRunner, tmp_path: Path
):
    break_scoring(runner, "er", split, outcome)
    results = runner.train()

    assert results == read_results(tmp_path)
    for task in ("er", "ks", "sid"):
        for name in ("dev", "test"):
            broken = (task, name) == ("er", split)
            assert "acc" not in results[task][name] if broken else results[task][name]["acc"] >= 0
    values = [
        entry["value"]
        for entry in read_metrics(tmp_path)
        if (entry["task"], entry["split"], entry["metric"]) == ("er", split, "acc")
    ]
    assert values == [None]
    assert list(results_table(tmp_path).columns[0].cells) == ["er", "ks", "sid"]
    assert (tmp_path / "states-1.ckpt").is_file()
    assert (tmp_path / "ks" / "dev-best.ckpt").is_file()
    assert (tmp_path / "er" / "dev-best.ckpt").is_file() == (split == "test")
    (place,) = runner.unscored
    assert place == ("er", split)
    with user_error(runner.unscored[place].code) as caught:
        runner.require_scores()
    assert f"er {split}" in caught.value.what


def test_the_error_has_the_place_and_remedy_of_the_reason(runner: MultiTaskRunner):
    break_scoring(runner, "ks", "test", undefined)
    runner.evaluate([("ks", "test"), ("er", "test")], None)
    with user_error("undefined-metric", where=r"^trials\.txt$", fix=r"Add some\."):
        runner.require_scores()
    break_scoring(runner, "sid", "dev", undefined)
    runner.evaluate([("sid", "dev")], None)
    with user_error("several") as caught:
        runner.require_scores()
    assert "ks test" in caught.value.what and "sid dev" in caught.value.what


def test_best_score_and_decision_are_those_from_before(runner: MultiTaskRunner):
    expert = runner.tasks["er"].expert

    def half_done() -> dict[str, float]:
        expert.best_score.fill_(0.9)
        expert.decision = {"threshold": 0.3}
        return undefined()

    break_scoring(runner, "er", "dev", half_done)
    runner.evaluate([("er", "dev"), ("ks", "dev")], None, keep_best=True)
    assert expert.best_score.item() == 0
    assert expert.decision == {}


def test_a_later_evaluation_that_can_be_scored_takes_the_error_back(
    runner: MultiTaskRunner, tmp_path: Path
):
    expert = runner.tasks["er"].expert
    measure = expert.measure
    with Recorder(tmp_path) as recorder:
        runner.evaluate([("er", "test")], recorder)
        assert read_results(tmp_path)["er"]["test"].keys() == {"acc", "loss"}
        break_scoring(runner, "er", "test", undefined)
        runner.evaluate([("er", "test")], recorder)
        assert read_results(tmp_path)["er"]["test"] == {}, "that of another step"
        assert runner.unscored
        expert.measure = measure
        runner.evaluate([("er", "test")], recorder)
    runner.require_scores()
    assert read_results(tmp_path)["er"]["test"].keys() == {"acc", "loss"}


def test_a_split_without_an_utterance_cannot_be_scored(runner: MultiTaskRunner):
    runner.evaluator.batches = 0
    runner.evaluate([("er", "dev")], None)
    with user_error("corpus-empty", where="'dev' of er"):
        runner.require_scores()


@pytest.mark.parametrize("failure", [ZeroDivisionError("a bug"), KeyError("loss")])
def test_a_bug_still_ends_the_evaluation(failure: Exception, runner: MultiTaskRunner):
    def fail() -> dict[str, Any]:
        raise failure

    break_scoring(runner, "er", "dev", fail)
    with pytest.raises(type(failure)):
        runner.evaluate([("er", "dev"), ("ks", "dev")], None)


@pytest.mark.parametrize("metric", ["undefined", "partly undefined"])
def test_a_window_of_training_without_a_metric_does_not_end_the_run(
    metric: str, runner: MultiTaskRunner, tmp_path: Path
):
    expert = runner.tasks["er"].expert
    parts = (
        {"acc": undefined} if metric == "undefined" else {"other": lambda: 0.5, "acc": undefined}
    )
    break_scoring(runner, "er", "train", lambda: expert.defined("train", parts))
    if metric == "undefined":
        break_scoring(runner, "ks", "train", undefined)
    runner.train()
    runner.require_scores()
    found = {
        (entry["task"], entry["metric"])
        for entry in read_metrics(tmp_path)
        if entry["split"] == "train" and entry["task"] in ("er", "ks")
    }
    if metric == "undefined":
        assert found == {("er", "loss"), ("ks", "loss")}
    else:
        assert found == {("er", "loss"), ("er", "other"), ("ks", "loss"), ("ks", "acc")}
