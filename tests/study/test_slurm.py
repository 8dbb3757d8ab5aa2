"""The job arrays of a study, with a minimal fake SLURM."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from s3prl_mtl.study.plan import depth
from s3prl_mtl.study.record import survey
from s3prl_mtl.study.slurm import write_slurm
from tests.launcher import Started, until

SBATCH = """#!/usr/bin/env bash
echo "$PWD" "$@" >> "$CALLS/sbatch"
echo "$((100 + $(wc -l < "$CALLS/sbatch")));cluster"
"""

STUDY = """#!/usr/bin/env bash
echo "$@" >> "$CALLS/studies"
[ "${WAITS:-}" ] || exit 0
trap 'exit 0' TERM
touch "$CALLS/waits"
while true; do sleep 0.05; done
"""

SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$CALLS/scontrol"
"""


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """An environment with sbatch, scontrol and s3prl-mtl that record their calls."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("s3prl-mtl", STUDY), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    path = f"{commands}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "CALLS": str(tmp_path)}


def written(fake_study, monkeypatch: pytest.MonkeyPatch, jobs: int | None = None):
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    study = fake_study()
    submit = write_slurm(study.runs, survey(study.runs, study.out), study.out, jobs)
    return study, submit


def test_each_stage_is_an_array_after_the_one_before(
    fake_study, variables, tmp_path: Path, monkeypatch
) -> None:
    study, submit = written(fake_study, monkeypatch, jobs=4)
    subprocess.run(["bash", str(submit), "--partition=gpu"], env=variables, check=True)
    lines = [line.split() for line in (tmp_path / "sbatch").read_text().splitlines()]
    depths = depth(study.runs)
    for stage, words in enumerate(lines):
        names = (submit.parent / words[-1]).read_text().split()
        assert names == [run.name for run in study.runs if depths[run.name] == stage]
        assert f"--array=0-{len(names) - 1}%4" in words
        assert "--partition=gpu" in words
        after = [word for word in words if word.startswith("--dependency")]
        assert after == ([f"--dependency=afterany:{100 + stage}"] if stage else [])
    assert len(lines) == 3


def test_runs_that_are_done_are_not_submitted(fake_study, variables, tmp_path, monkeypatch) -> None:
    study = fake_study()
    study.execute(only=[run for run in study.runs if run.scenario == "a"])
    _, submit = written(fake_study, monkeypatch)
    subprocess.run(["bash", str(submit)], env=variables, check=True)
    assert len((tmp_path / "sbatch").read_text().splitlines()) == 2


def element(submit: Path, number: int) -> dict[str, str]:
    return {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_JOB_ID": "7"}


def test_an_element_executes_its_run(fake_study, variables, tmp_path: Path, monkeypatch) -> None:
    study, submit = written(fake_study, monkeypatch)
    subprocess.run(
        ["bash", str(submit.parent / "job.sh"), "runs-1.txt"],
        env={**variables, **element(submit, 2)},
        check=True,
    )
    (line,) = (tmp_path / "studies").read_text().splitlines()
    assert line == f"study {study.out} --run b2/seed0/without-er"
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize(
    ("number", "requeued"), [(signal.SIGUSR1, ["requeue 7_0"]), (signal.SIGTERM, [])]
)
def test_an_element_is_requeued_at_its_time_limit_only(
    fake_study, variables, tmp_path: Path, monkeypatch, number, requeued: list[str]
) -> None:
    _, submit = written(fake_study, monkeypatch)
    words = ["bash", str(submit.parent / "job.sh"), "runs-0.txt"]
    environment = {**variables, **element(submit, 0), "WAITS": "yes"}
    with Started(words, tmp_path / "output", environment) as job:
        until(lambda: (tmp_path / "waits").exists())
        job.process.send_signal(number)
        assert job.wait() == 0
    calls = tmp_path / "scontrol"
    assert (calls.read_text().splitlines() if calls.exists() else []) == requeued
