"""Executing a study: what runs, in which order, what is skipped, and what failures do."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from s3prl_mtl.study.commands import commands_of, script
from s3prl_mtl.study.execution import lock_study
from s3prl_mtl.study.plan import Plan
from s3prl_mtl.study.record import is_locked, lock, survey
from s3prl_mtl.study.status import reason, summary
from s3prl_mtl.training.signals import Stopped
from tests.launcher import until
from tests.mistakes import user_error

WITH_MERGES = Plan(specs=("ks", "er"), scenarios=("a", "b1", "b2", "c", "d"), alphas=(0.25,))


def test_what_is_printed_is_what_is_executed(fake_study) -> None:
    study = fake_study(WITH_MERGES, joint_options=("--balancer", "pcgrad"), steps=3)
    printed = script(study.runs, study.settings, study.out)
    study.execute()
    lines = [line for line in printed.splitlines() if not line.startswith("#")]
    expected = [shlex.split(line.rpartition(" || ")[2]) for line in lines]
    assert [["s3prl-mtl", *words] for words in study.calls()] == expected
    assert len([line for line in lines if " || " in line]) == 2


def test_every_run_comes_once_and_after_its_needs(fake_study) -> None:
    study = fake_study(WITH_MERGES)
    states = study.execute(jobs=3)
    trained = study.trained()
    assert sorted(trained) == sorted(run.name for run in study.runs)
    assert all(
        trained.index(need) < trained.index(run.name) for run in study.runs for need in run.needs
    )
    assert {state.status for state in states.values()} == {"done"}


def test_finished_runs_are_skipped(fake_study) -> None:
    study = fake_study()
    study.execute()
    study.execute()
    assert study.trained() == []


def test_a_run_that_was_finished_by_hand_is_not_repeated(fake_study) -> None:
    study = fake_study()
    folder = study.out / "a/seed0/ks"
    folder.mkdir(parents=True)
    (command,) = commands_of(study.runs[0], study.settings, study.out)
    subprocess.run([*study.program, *command.words], check=True)
    study.execute()
    assert "a/seed0/ks" not in study.trained()
    assert "b1/seed0" in study.trained()


def test_a_run_that_was_finished_by_hand_is_repeated_after_its_needs(fake_study) -> None:
    study = fake_study()
    heads = [run for run in study.runs if run.scenario == "a"]
    study.execute(only=heads)
    (command,) = commands_of(study.settings.plan.run("b1/seed0"), study.settings, study.out)
    (study.out / "b1/seed0").mkdir(parents=True)
    subprocess.run([*study.program, *command.words], check=True)
    study.execute(only=heads)
    shutil.rmtree(study.out / "a/seed0/ks")
    study.execute()
    assert "b1/seed0" in study.trained()


@pytest.mark.parametrize(
    ("deleted", "again"),
    [
        ("c/seed0/ks", ["c/seed0/ks"]),
        ("b2/seed0/without-ks", ["b2/seed0/without-ks", "c/seed0/ks"]),
        # b2/without-ks trains er alone, from the head of er.
        (
            "a/seed0/ks",
            ["a/seed0/ks", "b1/seed0", "b2/seed0/without-er", "c/seed0/er"],
        ),
    ],
)
def test_deleting_a_run_repeats_it_and_what_depends_on_it(
    fake_study, deleted: str, again: list[str]
) -> None:
    study = fake_study()
    study.execute()
    shutil.rmtree(study.out / deleted)
    assert survey(study.runs, study.out)[deleted].status == "waiting"
    study.execute()
    assert study.trained() == again
    # The folders of dependents are kept.
    kept = {path.parent for path in (study.out / "outdated").rglob("finished.json")}
    assert {str(path.relative_to(study.out / "outdated")) for path in kept} == set(again[1:])


def test_a_failed_run_stops_only_those_that_need_it(fake_study) -> None:
    study = fake_study()
    study.order(a__seed0__ks="fail")
    states = study.execute()
    assert {name: state.status for name, state in states.items() if state.status != "done"} == {
        "a/seed0/ks": "failed",
        "b1/seed0": "waiting",
        "b2/seed0/without-er": "waiting",
        "c/seed0/er": "waiting",
    }
    assert "corpus is empty" in reason(study.runs[0], states)
    b1 = study.settings.plan.run("b1/seed0")
    assert "a/seed0/ks" in reason(b1, states)
    study.orders.unlink()
    states = study.execute()
    assert {state.status for state in states.values()} == {"done"}
    assert study.trained()[0] == "a/seed0/ks"


def test_a_run_that_a_signal_ended_early_is_not_done(fake_study) -> None:
    study = fake_study()
    study.order(a__seed0__ks="signal")
    assert study.execute()["a/seed0/ks"].status == "failed"


def test_runs_at_once_see_different_gpus(fake_study) -> None:
    study = fake_study(Plan(specs=("ks", "er"), scenarios=("a",)))
    study.order(a__seed0__ks="wait", a__seed0__er="wait")
    stopper = threading.Thread(target=lambda: _interrupt(study, ["a/seed0/ks", "a/seed0/er"]))
    stopper.start()
    with pytest.raises(Stopped):
        study.execute(jobs=2, devices=("3", "5"))
    stopper.join()
    assert sorted(study.devices()) == ["3", "5"]


def test_more_runs_than_gpus_are_shared_out(fake_study) -> None:
    tasks = ("ks", "er", "ic", "sid")
    study = fake_study(Plan(specs=tasks, scenarios=("a",)))
    names = [run.name for run in study.runs]
    study.order(**{name.replace("/", "__"): "wait" for name in names})
    stopper = threading.Thread(target=lambda: _interrupt(study, names))
    stopper.start()
    with pytest.raises(Stopped):
        study.execute(jobs=4, devices=("0", "1"))
    stopper.join()
    assert sorted(study.devices()) == ["0", "0", "1", "1"]


def _interrupt(study, names: list[str]) -> None:
    try:
        until(lambda: all((study.out / name / "waits").exists() for name in names))
    finally:  # else the main thread would wait for ever
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_lets_running_runs_save_and_starts_no_others(fake_study) -> None:
    study = fake_study()
    study.order(a__seed0__ks="wait")
    stopper = threading.Thread(target=lambda: _interrupt(study, ["a/seed0/ks"]))
    stopper.start()
    with pytest.raises(Stopped):
        study.execute()
    stopper.join()
    assert study.trained() == ["a/seed0/ks"]
    assert (study.out / "a/seed0/ks/states-1.ckpt").exists()
    state = survey(study.runs, study.out)["a/seed0/ks"]
    assert state.status == "waiting" and state.step == 1
    study.orders.unlink()
    study.execute()
    assert sorted(study.trained()) == sorted(run.name for run in study.runs)


def test_a_run_outlives_a_killed_study_and_is_waited_for(fake_study, tmp_path: Path) -> None:
    """The lock belongs to the process of the run: no second one is started beside it."""
    study = fake_study(Plan(specs=("ks", "er"), scenarios=("a",)))
    study.order(a__seed0__ks="wait")
    folder = study.out / "a/seed0/ks"
    held = lock(folder)
    assert held is not None
    (command,) = commands_of(study.runs[0], study.settings, study.out)
    orphan = subprocess.Popen([*study.program, *command.words], pass_fds=[held])
    os.close(held)
    until(lambda: (folder / "waits").exists())
    assert is_locked(folder)
    assert survey(study.runs, study.out)["a/seed0/ks"].status == "running"

    def finish() -> None:
        try:
            until(lambda: "a/seed0/er" in study.trained())
        finally:  # else the main thread would wait for ever
            study.orders.unlink()
            orphan.send_signal(signal.SIGTERM)
            orphan.wait()

    ender = threading.Thread(target=finish)
    ender.start()
    states = study.execute(jobs=2)
    ender.join()
    assert {state.status for state in states.values()} == {"done"}


def test_two_studies_in_one_folder_are_refused(tmp_path: Path) -> None:
    held = lock_study(tmp_path)
    # A lock of this process does not count as that of another one, but its file is another.
    words = "import sys; from s3prl_mtl.study.execution import lock_study; from pathlib import Path"
    code = f"{words}; lock_study(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert b"Another process" in done.stderr
    with user_error("folder-in-use", where=str(tmp_path)):
        lock_study(tmp_path)
    os.close(held)
    os.close(lock_study(tmp_path))


def test_one_run_alone_needs_its_needs(fake_study) -> None:
    study = fake_study()
    study.execute(only=[study.settings.plan.run("b1/seed0")])
    assert study.trained() == []
    study.execute(only=[study.settings.plan.run("a/seed0/er")])
    assert study.trained() == ["a/seed0/er"]


def test_a_summary_counts_the_runs(fake_study) -> None:
    study = fake_study()
    study.order(a__seed0__ks="fail")
    states = study.execute()
    assert summary(states, 7260.0).startswith("7 runs: 3 done, 3 waiting, 1 failed.")
    assert "2 h 1 min" in summary(states, 7260.0)


def test_records_are_json_without_machine_names(fake_study) -> None:
    study = fake_study()
    study.execute()
    record = json.loads((study.out / "b1/seed0/study_run.json").read_text())
    assert set(record["started_from"]) == {"a/seed0/ks", "a/seed0/er"}
    assert record["since"] is None and record["seconds"] >= 0
