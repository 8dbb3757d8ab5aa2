"""`s3prl-mtl demo`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3prl_mtl.api import studies
from s3prl_mtl.cli import make_corpus
from s3prl_mtl.cli.main import command_parser, main
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS
from s3prl_mtl.settings import find_settings
from s3prl_mtl.study.settings import read_settings, write_settings


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `demo` in a folder; returns the words of the study and the variables of its process."""
    made, started = [], []
    monkeypatch.setattr(make_corpus, "run", made.append)
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))

    def run(*words: str) -> tuple[list[str], dict[str, str]]:
        assert main(["demo", str(tmp_path), *words]) == 0
        program, command, variables = started.pop()
        assert program == sys.executable and command[1:3] == ["-m", "s3prl_mtl"]
        assert made.pop().directory == tmp_path / "corpus"
        return command[3:], variables

    return run


def test_the_demo_is_a_study_with_two_runs_of_one_thread_at_once(demo, tmp_path: Path) -> None:
    words, variables = demo("--steps", "3")
    assert variables["OMP_NUM_THREADS"] == "1"
    given = command_parser("study").parse_args(words[1:])
    assert words[0] == "study" and given.out == tmp_path
    assert (given.jobs, given.steps, given.data) == (2, 3, str(tmp_path / "corpus"))


def test_full_leaves_each_task_out_and_stays_so(demo, tmp_path: Path, monkeypatch) -> None:

    def only_write(plan: studies.PlannedStudy, *_: object, **__: object) -> studies.StudyResults:
        write_settings(plan.settings, plan.out)
        return studies.StudyResults(plan.out, {}, [], None)

    monkeypatch.setattr(studies, "_execute", only_write)
    for flags, count in (([], 12), (["--full"], 28), ([], 28)):
        words, _ = demo(*flags)
        assert main(words) == 0
        settings = read_settings(tmp_path)
        assert settings is not None and len(settings.plan.runs) == count


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
