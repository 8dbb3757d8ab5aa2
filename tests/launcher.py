"""Start, observe and signal real processes; all of them end with their test."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
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
    """A free port of this machine, below those that the system assigns at random."""
    begin = random.SystemRandom().randrange(first, last)
    for port in (*range(begin, last), *range(first, begin)):
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


class Started:
    """A process whose output is a file. On exit it and all its descendants are killed.

    Args:
        words: the command line.
        output: file for its output.
        variables: its environment.
        folder: its working directory.
    """

    def __init__(
        self, words: Sequence[str], output: Path, variables: Mapping[str, str], folder: Path = ROOT
    ) -> None:
        self.output = output
        # A process with a dead parent is nobody's child: all are known by their environment.
        self._mark = f"STARTED_BY_TEST={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                env={**variables, name: value},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # A group of its own: a signal to all of it does not reach the tests.
                start_new_session=True,
            )

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the process and all its descendants."""
        while marked := processes_with(self._mark):
            for pid in marked:
                send(pid, signal.SIGKILL)
        self.process.wait()

    def ranks(self) -> dict[int, int]:
        """The process of each live rank, by rank."""
        ranks = {}
        for pid in descendants(self.process.pid):
            rank = re.search(rb"(?:^|\0)RANK=(\d+)", read(f"/proc/{pid}/environ"))
            words = read(f"/proc/{pid}/cmdline").split(b"\0")
            is_run = words[2:3] and words[2].endswith(b"run_mtl.py")
            is_run = is_run or words[2:4] == [b"-m", b"s3prl_mtl"]
            if rank and is_run:
                # The workers of its loaders, which look the same, come later.
                ranks.setdefault(int(rank[1]), pid)
        return ranks

    def text(self) -> str:
        """Its output so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float = 300) -> int:
        """Its exit code.

        Raises:
            AssertionError: it has not ended in time; with its output.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s:\n{self.text()}") from None


def until(
    condition: Callable[[], Any], story: Callable[[], str] = str, seconds: float = 120
) -> None:
    """Wait until a condition on another process is true, which only polling can tell.

    Raises:
        AssertionError: it is not in time; with the story.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s:\n{story()}"
        # The only sleep of the tests, and no result depends on its length. The conditions are about
        # processes that do not report to us (frozen, killed, of an agent in between) and files and
        # stores that they write: no pipe or event tells when one becomes true.
        time.sleep(0.02)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def children(pid: int) -> list[int]:
    return [child for child, parent in _parents() if parent == pid]


def descendants(pid: int) -> list[int]:
    found = [pid]
    parents = list(_parents())
    for one in found:
        found += [child for child, parent in parents if parent == one]
    return found[1:]


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    return state(pid) not in (b"", b"Z")


def state(pid: int) -> bytes:
    """R, S, D, T (stopped) or Z (zombie); empty for a process that is gone."""
    return read(f"/proc/{pid}/stat").rpartition(b") ")[2][:1]


def processes_with(line: str) -> list[int]:
    """All processes of this machine with a line in their environment."""
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [n for n in numbers if line.encode() in read(f"/proc/{n}/environ").split(b"\0")]


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            # After the name of the program, which may contain anything: state, then parent.
            fields = read(f"/proc/{name}/stat").rpartition(b") ")[2].split()
            if fields:
                yield int(name), int(fields[1])


def read(path: str) -> bytes:
    """A file of a process; empty if the process is gone."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


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
