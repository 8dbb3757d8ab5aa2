"""`s3prl-mtl demo`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3prl_mtl import api
from s3prl_mtl.api import studies
from s3prl_mtl.cli.main import main
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS
from s3prl_mtl.settings import find_settings
from s3prl_mtl.study.settings import write_settings


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `demo` in a folder without its trainings; returns the plan and OMP_NUM_THREADS."""
    executed: list[tuple[studies.PlannedStudy, str | None]] = []

    def no_corpus(directory: Path, **_: object) -> Path:
        assert directory == tmp_path / "corpus"
        return directory

    def only_write(plan: studies.PlannedStudy, *_: object, **__: object) -> studies.StudyResults:
        write_settings(plan.settings, plan.out)
        executed.append((plan, os.environ.get("OMP_NUM_THREADS")))
        return studies.StudyResults(plan.out, {}, [], None)

    monkeypatch.setattr(studies, "make_corpus", no_corpus)
    monkeypatch.setattr(studies, "_execute", only_write)

    def run(*words: str) -> tuple[studies.PlannedStudy, str | None]:
        assert main(["demo", str(tmp_path), *words]) == 0
        return executed.pop()

    return run


def test_the_demo_is_a_study_with_two_runs_of_one_thread_at_once(
    demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    plan, threads = demo("--steps", "3")
    assert threads == "1" and os.environ["OMP_NUM_THREADS"] == "7"
    assert (plan.out, plan.jobs, plan.settings.steps) == (tmp_path, 2, 3)
    assert plan.settings.machine[:2] == ("--data", str(tmp_path / "corpus"))


def test_full_leaves_each_task_out_and_stays_so(demo) -> None:
    for flags, count in (([], 12), (["--full"], 28), ([], 28)):
        plan, _ = demo(*flags)
        assert len(plan.settings.plan.runs) == count


def test_from_python_a_run_that_failed_is_in_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(plan: studies.PlannedStudy, *_: object, **__: object) -> studies.StudyResults:
        write_settings(plan.settings, plan.out)
        return studies.StudyResults(plan.out, {"b1/seed0": "failed"}, ["b1/seed0"], None)

    monkeypatch.setattr(studies, "make_corpus", lambda directory, **_: directory)
    monkeypatch.setattr(studies, "_execute", fail)
    assert api.demo(tmp_path).missing == ["b1/seed0"]
    with pytest.raises(SystemExit) as end:
        main(["demo", str(tmp_path)])
    assert end.value.code == 1


def test_frozen_and_joint_runs_have_the_same_heads() -> None:
    """Joint runs start from the heads of (a)."""
    path = find_settings("demo_frozen")
    settings = read_yaml(path, str(path))
    assert set(settings) == {"runner", "optimizer", *BUILT_IN_TASKS}
    assert all(set(settings[task]["downstream_expert"]) == {"datarc"} for task in BUILT_IN_TASKS)


@pytest.mark.slow
def test_the_demo_ends_with_the_table_and_the_report_and_is_not_repeated(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "s3prl_mtl", "demo", str(tmp_path), "--steps", "1"]
    ends = []
    for _ in range(2):
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "(b-2)" in done.stdout and "EER" in done.stdout
        assert done.stdout.rstrip().endswith(str(tmp_path / "report.html"))
        ends.append({path: path.read_text() for path in tmp_path.rglob("finished.json")})
    assert len(ends[0]) == 12 and ends[0] == ends[1]
