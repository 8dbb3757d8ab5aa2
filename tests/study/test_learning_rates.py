"""The search of learning rates by successive halving, and their files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from s3prl_mtl.cli.main import main
from s3prl_mtl.study.commands import Command, commands_of
from s3prl_mtl.study.learning_rates import FILE, Rounds, read_learning_rates, runs_so_far, sweep
from s3prl_mtl.study.plan import Plan, StudyRun
from s3prl_mtl.study.record import RunStatus
from s3prl_mtl.study.settings import SWEEP_FILE, StudySettings, write_settings
from s3prl_mtl.training.run_dir import mark_finished
from tests.mistakes import user_error

RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class Trainer:
    """Executes a round: writes the dev scores that `score(rate, step)` gives; None fails."""

    def __init__(self, out: Path, score) -> None:
        self.out = out
        self.score = score
        self.rounds: list[tuple[int, list[float]]] = []
        self.words: list[tuple[str, ...]] = []

    def __call__(self, runs: Sequence[StudyRun], commands) -> Mapping[str, RunStatus]:
        states = {}
        found = []
        for run in runs:
            (command,) = commands(run)
            assert isinstance(command, Command)
            self.words.append(command.words)
            override = command.words[command.words.index("-o") + 1]
            rate = float(override.split("optimizer.lr=")[1].split(",,")[0])
            found.append(rate)
            value = self.score(rate, run.steps)
            states[run.name] = RunStatus("failed" if value is None else "done")
            if value is not None:
                self._write(self.out / run.name, run, value)
        self.rounds.append((runs[0].steps or 0, found))
        return states

    def _write(self, folder: Path, run: StudyRun, value: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(f"downstream: {json.dumps(run.tasks)}\n")
        line = {"step": run.steps, "task": run.tasks[0], "split": "dev", "metric": "acc"}
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**line, "value": value}) + "\n")


def settings(*tasks: str) -> StudySettings:
    plan = Plan(specs=tasks or ("ks",), scenarios=("a",))
    return StudySettings(plan=plan, upstream="hubert_tiny", steps=400, rates=RATES)


def test_rates_are_halved_and_the_longest_run_decides(tmp_path: Path) -> None:
    # At first 1e-2 is best, at the end 1e-3.
    def score(rate: float, step: int) -> float:
        best = 1e-2 if step < 400 else 1e-3
        return 1.0 / (1.0 + max(rate / best, best / rate))

    trainer = Trainer(tmp_path, score)
    assert sweep(settings(), tmp_path, trainer) == {"ks": 1e-3}
    assert [steps for steps, _ in trainer.rounds] == [100, 200, 400]
    assert [len(rates) for _, rates in trainer.rounds] == [5, 3, 2]
    assert set(trainer.rounds[-1][1]) == {1e-2, 1e-3}
    assert read_learning_rates(tmp_path / FILE) == {"ks": 1e-3}


def test_each_task_has_its_own_rate(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, lambda rate, step: rate)
    assert sweep(settings("ks", "er"), tmp_path, trainer) == {"ks": 1e-1, "er": 1e-1}


def test_small_rates_are_read_back_as_numbers(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, lambda rate, step: 1 - rate)
    sweep(settings(), tmp_path, trainer)
    assert read_learning_rates(tmp_path / FILE) == {"ks": 1e-5}


def test_test_splits_are_not_evaluated(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, lambda rate, step: rate)
    sweep(settings(), tmp_path, trainer)
    for words in trainer.words:
        override = words[words.index("-o") + 1].split(",,")
        assert {"runner.test_last=false", "runner.test_first=false"} <= set(override)


def test_failed_rates_are_left_out(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, lambda rate, step: None if rate > 1e-3 else rate)
    assert sweep(settings(), tmp_path, trainer) == {"ks": 1e-3}


def test_a_task_without_any_result_is_an_error(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, lambda rate, step: None)
    with user_error("non-finite", where="sweep/ks"):
        sweep(settings(), tmp_path, trainer)


def test_a_search_that_is_started_again_decides_alike(tmp_path: Path) -> None:
    """Runs of later rounds are there already; the first rounds look at their own steps."""

    def score(rate: float, step: int) -> float:
        return rate if step < 400 else 1 - rate

    first = Trainer(tmp_path, score)
    chosen = sweep(settings(), tmp_path, first)
    again = Trainer(tmp_path, score)
    assert sweep(settings(), tmp_path, again) == chosen
    assert again.rounds == first.rounds


@pytest.mark.parametrize("text", ["ks: fast\n", "ks: 0\n", "ks: -1.0e-3\n", "ks: .nan\n"])
def test_a_file_with_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with user_error("invalid-value", where="ks in"):
        read_learning_rates(path)


def test_the_state_of_an_unfinished_search_has_the_rates_of_its_round(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, lambda rate, step: rate)
    assert [run.steps for run in runs_so_far(settings(), tmp_path)] == [100] * 5
    rounds = Rounds(settings(), tmp_path)
    trainer(rounds.runs, lambda run: commands_of(run, settings(), tmp_path, rounds.rates[run.name]))
    for run in rounds.runs:
        mark_finished(tmp_path / run.name, 100)
    found = {run.name.rpartition("lr")[2]: run.steps for run in runs_so_far(settings(), tmp_path)}
    assert found == {"1e-05": 100, "0.0001": 100, "0.001": 200, "0.01": 200, "0.1": 200}


def test_status_shows_a_search(tmp_path: Path, capsys) -> None:
    assert main(["study", str(tmp_path), "--lr-sweep", "--status"]) == 2
    write_settings(settings(), tmp_path, SWEEP_FILE)
    for words in ([], ["--lr-sweep"]):
        capsys.readouterr()
        assert main(["study", str(tmp_path), *words, "--status"]) == 0
        shown = capsys.readouterr().out
        assert "sweep/ks/lr0.001" in shown and "5 runs: 5 waiting" in shown
