"""Rules that choose one checkpoint for many tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint, TaskCheckpoint
from s3prl_mtl.cli.main import main
from s3prl_mtl.study.dev_scores import DevScores, read_dev_scores
from s3prl_mtl.study.selection import (
    RELATIVE,
    average_checkpoints,
    choose,
    parse_average,
)
from s3prl_mtl.tasks.metric import Metric
from tests.mistakes import user_error

ACC = Metric("acc", "higher", "accuracy")
EER = Metric("eer", "lower", "EER")

# Accuracy rises to step 3; the error rate is best at step 1 and rises, as the paper's for ASV.
SCORES = {
    "ks": DevScores(ACC, "dev", {1: 0.50, 2: 0.80, 3: 0.90}),
    "sv": DevScores(EER, "dev", {1: 0.05, 2: 0.06, 3: 0.10}),
}
REFERENCES = {"ks": 0.5, "sv": 0.05}


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        ("per-task", {"ks": 3, "sv": 1}),
        # Gains: step 1 0 and 0; step 2 0.6 and -0.2; step 3 0.8 and -1.
        ("mean-gain", {"ks": 2, "sv": 2}),
        ("worst-case", {"ks": 1, "sv": 1}),
        # Every step has the mean rank 2: the first.
        ("rank", {"ks": 1, "sv": 1}),
        ("last", {"ks": 3, "sv": 3}),
    ],
)
def test_each_rule_chooses_by_its_definition(rule: str, steps: dict[str, int]) -> None:
    choice = choose(rule, SCORES, REFERENCES)
    assert choice.steps == steps
    assert choice.values == {task: SCORES[task].values[steps[task]] for task in SCORES}


def test_rank_counts_tasks_and_not_sizes_of_differences() -> None:
    scores = {
        "ks": DevScores(ACC, "dev", {1: 0.10, 2: 0.11}),
        "er": DevScores(ACC, "dev", {1: 0.10, 2: 0.11}),
        "sv": DevScores(EER, "dev", {1: 0.01, 2: 0.90}),
    }
    assert choose("rank", scores).step == 2


def test_costs_are_against_the_best_of_each_task() -> None:
    costs = choose("last", SCORES).costs
    assert costs["ks"] == 0 and math.isclose(costs["sv"], 0.05)
    assert set(choose("per-task", SCORES).costs.values()) == {0}


@pytest.mark.parametrize("rule", RELATIVE)
def test_gains_need_a_reference_of_every_task(rule: str) -> None:
    with user_error("missing-option", where=rule, fix="--reference"):
        choose(rule, SCORES, {"ks": 0.5})


def test_steps_without_all_tasks_are_not_chosen() -> None:
    scores = {**SCORES, "er": DevScores(ACC, "dev", {1: 0.2, 2: 0.3})}
    assert choose("last", scores).step == 2


@pytest.mark.parametrize("rule", ["average", "average:0", "average:x"])
def test_average_needs_a_number(rule: str) -> None:
    with user_error("invalid-value", where="--by"):
        parse_average(rule)


def checkpoint(step: int, value: float) -> RunCheckpoint:
    weight = torch.full((2,), value)
    head = {"linear.weight": weight, "count": torch.tensor(step), "best_score": torch.tensor(value)}
    return RunCheckpoint(
        step=step,
        skips={},
        config={},
        upstream={"model.weight": weight.half()},
        upstream_info=None,
        featurizer={"weights": weight},
        tasks={"ks": TaskCheckpoint(head, None, {"threshold": value})},
    )


def test_average_is_the_mean_of_the_last_checkpoints(tmp_path: Path) -> None:
    for step, value in ((1, 50.0), (2, 1.0), (3, 4.0)):
        checkpoints.save(checkpoint(step, value), tmp_path / f"states-{step}.ckpt")
    averaged, files = average_checkpoints(tmp_path, 2)
    assert [path.name for path in files] == ["states-2.ckpt", "states-3.ckpt"]
    assert averaged.step == 3 and averaged.training is None
    assert averaged.upstream["model.weight"].tolist() == [2.5, 2.5]
    assert averaged.upstream["model.weight"].dtype == torch.float16
    assert averaged.featurizer["weights"].tolist() == [2.5, 2.5]
    head = averaged.tasks["ks"].head
    assert head["linear.weight"].tolist() == [2.5, 2.5]
    assert head["count"] == 3 and head["best_score"] == 4.0
    assert averaged.tasks["ks"].decision == {"threshold": 4.0}


def test_average_needs_as_many_checkpoints(tmp_path: Path) -> None:
    checkpoints.save(checkpoint(1, 1.0), tmp_path / "states-1.ckpt")
    with user_error("checkpoint-missing", fix="max_keep=2"):
        average_checkpoints(tmp_path, 2)


def write_run(folder: Path, tasks: dict[str, tuple[str, list[float]]], **records: object) -> None:
    """A run with dev scores at steps 1, 2, ... and the test result of its best checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"downstream: {json.dumps(list(tasks))}\n")
    lines = [
        {"step": step, "task": task, "split": "dev", "metric": metric, "value": value}
        for task, (metric, values) in tasks.items()
        for step, value in enumerate(values, 1)
    ]
    lines.append({**lines[0], "step": 9, "checkpoint": "ks/dev-best.ckpt"})
    lines.append({**lines[0], "step": 8, "value": None})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A joint run in a study, with the runs of its heads."""
    write_run(tmp_path / "b1/seed0", {"ks": ("acc", [0.5, 0.8, 0.9]), "er": ("acc", [0.6, 0.5])})
    write_run(tmp_path / "a/seed0/ks", {"ks": ("acc", [0.4, 0.5, 0.2])})
    write_run(tmp_path / "a/seed0/er", {"er": ("acc", [0.5])})
    (tmp_path / "study.json").write_text("{}")
    return tmp_path


def test_dev_scores_are_of_evaluations_during_training(runs: Path) -> None:
    scores = read_dev_scores(runs / "b1/seed0")
    assert scores["ks"].values == {1: 0.5, 2: 0.8, 3: 0.9}
    assert list(read_dev_scores(runs / "b1/seed0", last_step=2)["ks"].values) == [1, 2]


def test_select_compares_all_rules_with_the_heads_of_the_study(runs: Path, capsys) -> None:
    assert main(["select", str(runs / "b1/seed0"), "--json"]) == 0
    chosen = {entry["rule"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(chosen) == {"per-task", "mean-gain", "rank", "worst-case", "last"}
    assert chosen["mean-gain"]["steps"] == {"ks": 2, "er": 2}
    assert chosen["worst-case"]["steps"] == {"ks": 1, "er": 1}


def test_averages_are_compared_once_they_were_evaluated_on_dev(runs: Path, capsys) -> None:
    run = runs / "b1/seed0"
    for step, value in ((1, 1.0), (2, 4.0)):
        checkpoints.save(checkpoint(step, value), run / f"states-{step}.ckpt")
    assert main(["select", str(run), "--by", "average:2"]) == 0
    evaluate = f"evaluate -e {run}/average-2.ckpt -p {run}/average-2 -t ks:dev,er:dev"
    assert evaluate in capsys.readouterr().out
    for er, expected in ((None, {}), (0.7, {"ks": 0.1, "er": -0.1})):
        results = {"ks": {"dev": {"acc": 0.8}}, "er": {"dev": {"acc": er}}}
        source = {"step": 2, "checkpoint": "../average-2.ckpt"}
        record = {**results, "_source": {"ks": {"dev": source}, "er": {"dev": source}}}
        (run / "average-2").mkdir(exist_ok=True)
        (run / "average-2/results.json").write_text(json.dumps(record))
        assert main(["select", str(run), "--json"]) == 0
        chosen = {entry["rule"]: entry for entry in json.loads(capsys.readouterr().out)}
        assert chosen.get("average:2", {}).get("cost", {}) == pytest.approx(expected)
    assert main(["select", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "average:2" in shown and "(-10.00)" in shown and "(+10.00)" in shown


def test_select_outside_of_a_study_has_the_rules_without_reference(runs: Path, capsys) -> None:
    (runs / "study.json").unlink()
    assert main(["select", str(runs / "b1/seed0")]) == 0
    shown = capsys.readouterr().out
    assert "mean-gain" in shown.splitlines()[-1]
    assert main(["select", str(runs / "b1/seed0"), "--reference", str(runs / "a/seed0")]) == 0
    assert "worst-case" in capsys.readouterr().out


def test_the_table_of_nine_tasks_fits_into_80_columns(tmp_path: Path, capsys, monkeypatch) -> None:
    from rich.console import Console

    from s3prl_mtl.cli.select import choices_table

    scores = {f"task{n}": SCORES["sv"] for n in range(9)}
    references = dict.fromkeys(scores, 0.05)
    rules = ["per-task", "mean-gain", "rank", "worst-case", "last"]
    table = choices_table([choose(rule, scores, references) for rule in rules], scores)
    Console(width=80).print(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and any("worst-case" in line for line in lines)


def test_an_unknown_rule_names_the_nearest(runs: Path, capsys) -> None:
    assert main(["select", str(runs / "b1/seed0"), "--by", "mean-gian", "--verbose"]) == 2
    shown = capsys.readouterr().err
    assert "[unknown-name]" in shown and "'mean-gain'" in shown


@pytest.mark.parametrize("by", [[], ["--by", "last"], ["--by", "average:2"]])
def test_another_folder_than_that_of_a_run_is_named(tmp_path: Path, by: list[str], capsys) -> None:
    (tmp_path / "study.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "missing"):
        assert main(["select", str(folder), *by, "--verbose"]) == 2
        shown = capsys.readouterr().err
        assert "[file-missing]" in shown and f"Where: RUN {folder}" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
