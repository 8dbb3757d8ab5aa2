"""The metrics of an evaluation divided over ranks equal those of one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import SharedMistake, UserError
from s3prl_mtl.tracking.recorder import Recorder, read_results
from s3prl_mtl.training.evaluation import Interrupted
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.distributed.ranks import run_ranks
from tests.distributed.test_updates import make_config


def evaluate_everything(
    world: World, config: dict[str, Any], folder: Path
) -> tuple[list[tuple], dict[str, tuple]]:
    """The metrics of every split, and best score and decision of each expert after it."""
    runner = MultiTaskRunner(config, folder, world=world)
    runner.run.step = 7
    splits = runner.splits("dev_splits") + runner.splits("test_splits")
    reports = runner.evaluator.evaluate(splits)
    memory = {
        name: (task.expert.best_score.item(), dict(task.expert.decision))
        for name, task in runner.tasks.items()
    }
    return [(r.task, r.split, r.scalars, r.save_names) for r in reports], memory


@pytest.fixture(scope="module")
def alone(
    tiny_corpus: Path, manifest_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[tuple], dict[str, tuple]]]:
    config = make_config(tiny_corpus, manifest_cache, "all")
    yield run_ranks(1, evaluate_everything, config, tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.parametrize(
    ("ranks", "placement"),
    [
        (2, None),
        pytest.param(3, None, marks=pytest.mark.slow),
        pytest.param(2, "0:asr,pr,sf,sd,sv;1:ks,ic,sid,er,sd", marks=pytest.mark.slow),
    ],
)
def test_the_metrics_of_every_task_are_those_of_one_process(
    ranks: int, placement: str | None, alone, tiny_corpus: Path, manifest_cache: Path, tmp_path
):
    config = make_config(tiny_corpus, manifest_cache, "all")
    config["distributed"]["placement"] = placement
    answers = run_ranks(ranks, evaluate_everything, config, tmp_path)
    reports, memory = alone
    assert len(reports) == 18
    assert answers[0][0] == reports, "bit for bit: the floats are compared as they are"
    assert all(answer[0] == [] for answer in answers[1:]), "only the first rank has the reports"
    for _, remembered in answers:
        for task, value in remembered.items():
            assert value == memory[task], f"{task} remembers something else than on one process"


def evaluate_with_a_fault(
    world: World, config: dict[str, Any], folder: Path, fault: str
) -> tuple[tuple[str, str | None, str, str | None], dict[str, float]]:
    """Type, code, text and place of the error of an evaluation, and the best scores after it."""
    for task in config["downstream"]:  # Several batches on each rank.
        config[task]["downstream_expert"]["datarc"]["eval_batch_size"] = 2
    runner = MultiTaskRunner(config, folder, world=world)
    encode = runner.encoder.hidden_states
    seen = []

    def hidden_states(wavs: list[Any], masks: Any = ()) -> Any:
        seen.append(len(wavs))
        if world.rank == 1 and len(seen) == 2:
            if fault == "stop":
                runner.run.stop_asked = lambda: True
            elif fault == "mistake":
                raise UserError("The file is not audio.", where="x.wav", code="audio-unreadable")
            else:
                raise ZeroDivisionError("a bug")
        return encode(wavs, masks)

    runner.encoder.hidden_states = hidden_states
    error: BaseException
    try:
        runner.evaluator.evaluate(runner.splits("dev_splits"))
    except (Interrupted, Exception) as caught:
        error = caught
    scores = {name: task.expert.best_score.item() for name, task in runner.tasks.items()}
    code, where = getattr(error, "code", None), getattr(error, "where", None)
    return (type(error).__name__, code, str(error), where), scores


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param("stop", [("Interrupted", None, "", None)] * 2, marks=pytest.mark.slow),
        ("mistake", [("SharedMistake", "audio-unreadable", "rank 1: The file", "x.wav")] * 2),
        pytest.param(
            "bug",
            [("OtherRankFailed", None, "Rank 1", None), ("ZeroDivisionError", None, "a bug", None)],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_error_of_one_rank_ends_the_evaluation_on_all_and_keeps_the_best_scores(
    fault: str,
    expected: list[tuple[str, str | None, str, str | None]],
    tiny_corpus: Path,
    manifest_cache: Path,
    tmp_path: Path,
):
    config = make_config(tiny_corpus, manifest_cache, "ks,er,sid")
    answers = run_ranks(2, evaluate_with_a_fault, config, tmp_path, fault)
    for ((kind, code, text, where), scores), (its_kind, its_code, part, place) in zip(
        answers, expected, strict=True
    ):
        assert (kind, code, where) == (its_kind, its_code, place) and part in text
        assert set(scores.values()) == {0.0}, "a failed evaluation set a best score"


def evaluate_without_scores(
    world: World, config: dict[str, Any], folder: Path, split: str
) -> tuple[dict[str, float], dict[str, float], tuple[str, str | None]]:
    """The accuracies on the first rank, all best scores, and the error at the end."""
    runner = MultiTaskRunner(config, folder, world=world)
    if "er" in runner.tasks:
        expert = runner.tasks["er"].expert
        measure = expert.measure

        def undefined(name: str, records: Any) -> dict[str, float]:
            if name != split:
                return measure(name, records)
            expert.best_score.fill_(1.0)
            raise UserError("No labels.", where="labels.txt", code="undefined-metric")

        expert.measure = undefined
    with Recorder(folder) if world.is_lead else nullcontext() as recorder:
        runner.evaluate(runner.splits("dev_splits"), recorder, keep_best=True)
        runner.evaluate(runner.splits("test_splits"), recorder)
    found = {
        f"{task} {name}": values["acc"]
        for task, splits in read_results(folder).items()
        for name, values in splits.items()
        if world.is_lead and "acc" in values
    }
    scores = {name: task.expert.best_score.item() for name, task in runner.tasks.items()}
    try:
        runner.require_scores()
    except SharedMistake as error:
        return found, scores, (error.code, error.where)
    raise AssertionError("no error")


@pytest.mark.parametrize(
    ("split", "placement"),
    [
        ("dev", None),
        pytest.param("test", None, marks=pytest.mark.slow),
        ("dev", "0:ks;1:er,sid"),
    ],
)
def test_a_split_without_a_score_ends_the_run_on_all_ranks_after_the_others_are_saved(
    split: str, placement: str | None, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = make_config(tiny_corpus, manifest_cache, "ks,er,sid")
    config["distributed"]["placement"] = placement
    answers = run_ranks(2, evaluate_without_scores, config, tmp_path, split)
    everything = {f"{task} {name}" for task in ("ks", "er", "sid") for name in ("dev", "test")}
    assert set(answers[0][0]) == everything - {f"er {split}"}
    for _, scores, error in answers:
        assert error == ("undefined-metric", "labels.txt")
        expected = answers[0][0].get("er dev", 0.0)
        assert scores.get("er", expected) == pytest.approx(expected), "taken back"
    assert (tmp_path / "er" / "dev-best.ckpt").is_file() == (split == "test")
