"""Runs of `run_mtl.py` under torchrun as real processes, for the tests that need several."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from s3prl_mtl.checkpoint import files as checkpoints

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SETTINGS = (
    "runner.log_step=1,,runner.eval_step=1000,,runner.test_first=false,,runner.test_last=false"
)


def training(folder: Path, steps: int, *words: str, save_step: int = 1000) -> list[str]:
    """The words of `run_mtl.py` for a run of two small tasks that logs every step."""
    demo = str(ROOT / "run_scripts" / "demo.yaml")
    settings = f"{SETTINGS},,runner.save_step={save_step}"
    tasks = ["-u", "hubert_tiny", "-d", "ks,er", "-c", demo, "-o", settings]
    return [*tasks, "--steps", str(steps), "--device", "cpu", "-p", str(folder), *words]


def environment(corpus: Path, cache: Path, **variables: str) -> dict[str, str]:
    added = {
        "SUPERB_DATA": str(corpus),
        "S3PRL_MTL_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **added, **variables}


def free_port(first: int = 20000, last: int = 30000) -> int:
    """A port of this machine that nothing listens on; not one of those given out at random."""
    for port in range(first + os.getpid() % (last - first), last):
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


class Started:
    """A process whose output is a file. On leaving the context all that it has started is killed.

    Args:
        words: the command line.
        output: file for what it prints.
        variables: its environment.
    """

    def __init__(self, words: Sequence[str], output: Path, variables: Mapping[str, str]) -> None:
        self.output = output
        # Whose parent has died belongs to nobody's children: all are known by their environment.
        self._mark = f"STARTED_BY_TEST={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                words,
                cwd=ROOT,
                env={**variables, name: value},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *error: object) -> None:
        while marked := processes_with(self._mark):
            for pid in marked:
                _kill(pid)
            self.process.wait()

    def children(self) -> list[int]:
        """All processes below this one."""
        return children_of(self.process.pid)

    def ranks(self) -> dict[int, int]:
        """The process of each rank that lives, by rank: whatever torchrun itself has started."""
        ranks = {}
        for pid in self.children():
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            rank = [line for line in environ if line.startswith(b"RANK=")]
            if rank and words[2:3] == [b"run_mtl.py"]:
                ranks[int(rank[0].removeprefix(b"RANK="))] = pid
        return ranks

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self, seconds: float = 300) -> int:
        """Its exit code.

        Raises:
            AssertionError: it has not ended in time; with what it printed.
        """
        until(lambda: self.process.poll() is not None, lambda: self.text(), seconds)
        return self.process.returncode


def until(condition: Callable[[], Any], story: Callable[[], str], seconds: float = 120) -> None:
    """Wait for something to become true.

    Raises:
        AssertionError: it has not in time; with the story.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s:\n{story()}"
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """All processes below a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def processes_with(line: str) -> list[int]:
    """All processes of this machine that have a line in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if line.encode() in environ.split(b"\0"):
                found.append(int(entry.name))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def reached(folder: Path, step: int) -> bool:
    """Whether the log of the run has come to a step."""
    log = folder / "log.txt"
    return log.is_file() and any(f"step {step} " in line for line in log.read_text().splitlines())


def steps_logged(folder: Path) -> list[int]:
    """The step of every line of the run's loss in `metrics.jsonl`, in their order."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if (line["task"], line["metric"]) == ("run", "loss")]


def same_weights(one: Path, two: Path) -> bool:
    """Whether the encoder and the heads of two checkpoints are equal to the last bit."""
    first, second = checkpoints.load(one), checkpoints.load(two)
    pairs = [(first.upstream, second.upstream), (first.featurizer, second.featurizer)]
    pairs += [(entry.head, second.tasks[task].head) for task, entry in first.tasks.items()]
    return first.step == second.step and all(
        left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
        for left, right in pairs
    )
