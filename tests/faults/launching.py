"""Launch runs for fault injection: their processes, ranks and files."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.fileio.atomic import PARTIAL
from s3prl_mtl.tracking.recorder import read_metrics
from tests.comparison import assert_same
from tests.launcher import ROOT, TORCHRUN, Started, free_port, send, state

DEMO = ROOT / "run_scripts" / "demo.yaml"

DEADLINE_SECONDS = 120.0
"""For whatever a test waits for. A run that is well takes a small part of it."""

TRACE = "s3prl_mtl/cli/main.py"
"""In every traceback of a run; torchrun prints one of its own when a rank fails."""

POLL_SECONDS = 0.002
"""A checkpoint of a tiny run is written in some ten milliseconds."""


def words_of(tasks: str, steps: int, *others: str, **settings: object) -> list[str]:
    """The words of a small run; `runner__save_step=1` stands for `-o runner.save_step=1`."""
    values: dict[str, object] = {
        "runner.log_step": 1,
        "runner.save_step": 1,
        "runner.eval_step": 1000,
        "runner.test_first": "false",
        "runner.test_last": "false",
    }
    values |= {key.replace("__", "."): value for key, value in settings.items()}
    override = ",,".join(f"{key}={value}" for key, value in values.items())
    words = ["-u", "hubert_tiny", "-c", str(DEMO), "-d", tasks, "--steps", str(steps)]
    return [*words, *others, "-o", override]


class Run:
    """One start of the command line, by itself or under torchrun.

    Args:
        words: of `run_mtl.py`, without the run's folder.
        folder: of the run.
        variables: the environment.
        ranks: 1 is one process without torchrun.
        torchrun: further words for it.
        terminal: file that takes what the run prints.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        variables: Mapping[str, str],
        ranks: int,
        torchrun: Sequence[str],
        terminal: Path,
    ) -> None:
        self.folder = folder
        self.ranks = ranks
        # What a former start logged into the same files is not this run's.
        self._log_starts = {r: size(self._log_file(r)) for r in range(ranks)}
        command = [sys.executable]
        if ranks > 1:
            command = [*TORCHRUN, "--nproc_per_node", str(ranks)]
            command += ["--master_port", str(free_port()), *torchrun]
        command += [str(ROOT / "run_mtl.py"), *words, "-p", str(folder)]
        self._started = Started(command, terminal, variables, folder=terminal.parent)
        self.process = self._started.process

    # ------------------------------------------------------------------------ its output

    @property
    def terminal(self) -> str:
        """What it has printed so far."""
        return self._started.text()

    def log(self, rank: int = 0) -> str:
        """What a rank has logged so far."""
        path = self._log_file(rank)
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(self._log_starts[rank])
            return file.read().decode()

    def logged(self, module: str, level: str = "WARNING", rank: int = 0) -> list[str]:
        """The messages of a module of the package in the log of a rank."""
        pattern = rf"^\S+ \S+ {level} s3prl_mtl\.{re.escape(module)}: (.*)$"
        return re.findall(pattern, self.log(rank), re.MULTILINE)

    def logged_step(self) -> int:
        """The last step in the log, 0 before the first."""
        return max((int(n) for n in re.findall(r"step (\d+)  loss", self.log())), default=0)

    def _log_file(self, rank: int) -> Path:
        return self.folder / ("log.txt" if rank == 0 else f"log-rank{rank}.txt")

    # ----------------------------------------------------------------------- its course

    def until(
        self, condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS
    ) -> Any:
        """Wait for a condition, and return what it gave.

        Raises:
            AssertionError: it does not come in time, or cannot come: the run is over.
        """
        deadline = time.monotonic() + seconds
        while True:
            over = self.process.poll() is not None
            value = condition()
            if value:
                return value
            assert not over, f"the run ended before {what}:\n{self.terminal}"
            assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}:\n{self.terminal}"
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(POLL_SECONDS)

    def until_logged(
        self, module: str, level: str = "WARNING", rank: int = 0, seconds: float = DEADLINE_SECONDS
    ) -> list[str]:
        """Wait for messages of a module in the log of a rank."""
        return self.until(
            lambda: self.logged(module, level, rank), f"a message of {module}", seconds
        )

    def until_lines(self, lines: int) -> None:
        """Wait until the first rank has logged a number of lines."""
        self.until(lambda: self.log().count("\n") >= lines, f"{lines} lines in the log")

    def until_step(self, step: int) -> None:
        self.until(lambda: self.logged_step() >= step, f"step {step}")

    def until_partial(self) -> Path:
        """Wait until a checkpoint begins to be written; its file as long as it is not whole."""
        before = dict(partial_files(self.folder))

        def new() -> Path | None:
            # One that a killed run has left is overwritten by this one.
            fresh = [path for path, at in partial_files(self.folder) if before.get(path) != at]
            return fresh[0] if fresh else None

        deadline = time.monotonic() + DEADLINE_SECONDS
        while (found := new()) is None:
            # No pause: it is there for a few milliseconds only.
            assert self.process.poll() is None, self.terminal
            assert time.monotonic() < deadline, self.terminal
        return found

    def freeze_while_saving(self, pid: int) -> Path:
        """Wait for a checkpoint that is only written in part, and stop the process that writes it.

        Args:
            pid: of the first rank.

        Returns:
            the file; it stays as it is.
        """
        while True:
            partial = self.until_partial()
            send(pid, signal.SIGSTOP)
            self.until(lambda: state(pid) == b"T", "it is frozen")
            if partial.is_file():
                return partial
            send(pid, signal.SIGCONT)

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """The exit code of the command."""
        return self._started.wait(seconds)

    # -------------------------------------------------------------------- its processes

    def rank_pids(self) -> dict[int, int]:
        """{rank: process} of all ranks, as soon as all have started."""

        def find() -> dict[int, int]:
            found = {0: self.process.pid} if self.ranks == 1 else self._started.ranks()
            return found if len(found) == self.ranks else {}

        return self.until(find, "all ranks have started")

    def kill(self) -> None:
        """SIGKILL to the command and all its descendants."""
        self._started.kill()


class Launcher:
    """Starts runs in a folder of a test, and leaves none behind."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.variables = dict(variables)
        self._runs: list[Run] = []

    def __call__(
        self,
        words: Sequence[str],
        *more: str,
        name: str = "run",
        ranks: int = 1,
        torchrun: Sequence[str] = (),
        **variables: str,
    ) -> Run:
        terminal = self.folder / f"terminal-{len(self._runs)}.txt"
        run = Run(
            [*words, *more],
            self.folder / name,
            self.variables | variables,
            ranks,
            torchrun,
            terminal,
        )
        self._runs.append(run)
        return run

    def finished(self, words: Sequence[str], *more: str, **how: Any) -> Run:
        """A run that ends as it should."""
        run = self(words, *more, **how)
        assert run.wait() == 0, run.terminal
        return run

    def close(self) -> None:
        for run in self._runs:
            run.kill()


# --------------------------------------------------------------------------- comparisons


def assert_ended_alike(run: Path, whole: Path, steps: int) -> None:
    """Nothing tells a run from the uninterrupted one: not its last state, not its curves.

    The state holds weights, optimizer, schedule, the place in the data and the random generators
    of every rank.
    """
    state = checkpoints.load(run / f"states-{steps}.ckpt")
    assert state.training.random and state.step == steps
    assert_same(state, checkpoints.load(whole / f"states-{steps}.ckpt"))
    noted = list(read_metrics(run))
    places = [(e["step"], e["task"], e["split"], e["metric"]) for e in noted]
    assert len(set(places)) == len(places), "a step is noted twice"
    assert {step for step, *_ in places} == set(range(1, steps + 1))
    assert noted == list(read_metrics(whole))


def newest(folder: Path) -> int:
    """The step of the newest checkpoint, which must be whole; 0 without one."""
    files = checkpoints.states_files(folder)
    return checkpoints.load(files[-1]).step if files else 0


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def partial_files(folder: Path) -> list[tuple[Path, int]]:
    """Checkpoints that are not whole, each with the time of its last change in ns."""
    found = []
    for path in folder.glob(f"{PARTIAL}states-*.ckpt"):
        try:
            found.append((path, path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found
