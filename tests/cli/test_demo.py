"""`s3prl-mtl demo`."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from s3prl_mtl.cli import make_corpus
from s3prl_mtl.cli.main import main


def test_the_demo_trains_all_tasks_with_two_processes_of_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, started = [], []
    monkeypatch.setattr(make_corpus, "run", made.append)
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    assert main(["demo", str(tmp_path), "--steps", "3"]) == 0
    ((program, words, variables),) = started
    assert program == sys.executable
    assert variables["OMP_NUM_THREADS"] == "1"
    assert words[words.index("--nproc_per_node") + 1] == "2"
    training = words[words.index("s3prl_mtl") + 1 :]
    assert training[0] == "train" and "-a" in training
    values = dict(pairwise(training))
    assert (values["-c"], values["-d"], values["--steps"]) == ("demo", "all", "3")
    assert values["--data"] == str(made[0].directory) == str(tmp_path / "corpus")


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_resumes(tmp_path: Path):
    words = [sys.executable, "-m", "s3prl_mtl", "demo", str(tmp_path), "--steps"]
    for steps in ("1", "2"):
        done = subprocess.run([*words, steps], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "run" / f"states-{steps}.ckpt").is_file()
    assert "EER" in done.stdout
