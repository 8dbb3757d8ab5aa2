"""Execute the runs of a study: several at once, each in a process of its own."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.data.workers import exit_summary
from s3prl_mtl.errors import UserError
from s3prl_mtl.study.commands import Command
from s3prl_mtl.study.plan import StudyRun
from s3prl_mtl.study.record import (
    LOCK,
    OUTPUT,
    RunStatus,
    adopt,
    begin,
    lock,
    read_record,
    set_aside,
    survey,
    write_record,
)
from s3prl_mtl.training.run_dir import read_finished
from s3prl_mtl.training.signals import Stopped, StopSignals

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
FOREIGN_SECONDS = 2.0
"""Interval between checks of the runs of other processes."""
PROBE_SECONDS = 2.0
"""Maximum time that a process which queries the status holds a lock."""

Commands = Callable[[StudyRun], Sequence[Command]]


class StudyStopped(Stopped):
    """A signal stopped the study: its runs were saved."""

    remedy = "The same command goes on."


@dataclass
class _Started:
    """A run with a process.

    Args:
        run: the run.
        commands: those that are still to be executed.
        lock: descriptor of the lock, which the processes inherit.
        device: that they see, or None for all.
        process: of the current command.
    """

    run: StudyRun
    commands: list[Command]
    lock: int
    device: str | None
    process: subprocess.Popen[bytes] | None = None


class Execution:
    """Executes runs, each when those that it needs are done.

    A run that fails does not stop the others; those that need it wait. A run that another process
    executes is waited for.

    Args:
        runs: each after those that it needs.
        out: absolute path of the folder of the study.
        commands: the commands of a run.
        jobs: how many runs at once.
        devices: numbers of the GPUs, of which each run sees one; empty if there are none.
        signals: an entered context. On a signal the runs are saved and `StudyStopped` is raised.
        program: the words of the command line before those of a command.
    """

    def __init__(
        self,
        runs: Sequence[StudyRun],
        out: Path,
        commands: Commands,
        jobs: int,
        devices: Sequence[str],
        signals: StopSignals,
        program: Sequence[str] = (sys.executable, "-m", "s3prl_mtl"),
    ) -> None:
        self.runs = runs
        self.out = out
        self.commands = commands
        self.jobs = jobs
        self.devices = devices
        self.signals = signals
        self.program = program
        self._started: list[_Started] = []
        self._attempted: set[str] = set()

    def execute(self, only: Sequence[StudyRun] | None = None) -> dict[str, RunStatus]:
        """Execute all runs that are not done, or some of them.

        Returns:
            the states at the end.

        Raises:
            StudyStopped: a signal came.
            KeyboardInterrupt: Ctrl-C came twice; the processes are killed.
        """
        wanted = self.runs if only is None else only
        adopt(self.runs, self.out)
        try:
            with self.signals.deferred():
                while True:
                    states = survey(self.runs, self.out)
                    if self.signals.requested is not None:
                        self._stop()
                        raise StudyStopped("The study stopped; its runs are saved.")
                    # Of a study that was killed, or of the jobs of a cluster.
                    others = sum(states[run.name].status == "running" for run in wanted)
                    others -= len(self._started)
                    self._start(wanted, states, self.jobs - others)
                    if not self._started and not others:
                        return survey(self.runs, self.out)
                    until = time.monotonic() + (FOREIGN_SECONDS if others else math.inf)
                    while not self._ended() and self.signals.requested is None:
                        if time.monotonic() > until:
                            break
                        time.sleep(POLL_SECONDS)
        finally:
            for started in self._started:
                if started.process is not None:
                    started.process.kill()
                    started.process.wait()
                os.close(started.lock)

    def _start(
        self, wanted: Sequence[StudyRun], states: Mapping[str, RunStatus], places: int
    ) -> None:
        """Start runs until so many are running."""
        for run in wanted:
            if len(self._started) >= places:
                return
            ready = states[run.name].status in ("waiting", "failed")
            ready = ready and all(states[need].status == "done" for need in run.needs)
            if not ready or run.name in self._attempted:
                continue
            if states[run.name].outdated:
                logger.info(
                    "%s is outdated: runs that it depends on were trained again. Moved it to %s; "
                    "training it again.",
                    *(run.name, set_aside(run, self.out)),
                )
            held = _lock_with_retry(self.out / run.name)
            if held is None:
                continue
            self._attempted.add(run.name)
            begin(run, self.out, states)
            taken = [other.device for other in self._started]
            device = min(self.devices, key=taken.count, default=None)
            started = _Started(run, list(self.commands(run)), held, device)
            logger.info("%s starts%s.", run.name, f" on GPU {device}" if device else "")
            self._started.append(started)
            self._next_command(started)

    def _next_command(self, started: _Started) -> None:
        """Start the next command of a run that has work to do; without one its process is None."""
        started.process = None
        while started.commands:
            command = started.commands.pop(0)
            if command.creates is not None and command.creates.exists():
                continue
            environment = {**os.environ, "COLUMNS": "200"}
            if started.device is not None:
                environment["CUDA_VISIBLE_DEVICES"] = started.device
            if self.jobs > 1:
                # Threads of several processes that wait for each other, spinning, take half of
                # the time of a machine.
                cores = str(max(1, (os.cpu_count() or 1) // self.jobs))
                environment.setdefault("OMP_NUM_THREADS", cores)
                environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            with (self.out / started.run.name / OUTPUT).open("ab") as output:
                output.write(f"$ {command}\n".encode())
                output.flush()
                started.process = subprocess.Popen(
                    [*self.program, *command.words],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=[started.lock],
                )
            return

    def _ended(self) -> bool:
        """Whether a run has ended since the last call; go on with the others."""
        ended = False
        for started in list(self._started):
            code = started.process.poll() if started.process is not None else 0
            if code is None:
                continue
            if code == 0:
                self._next_command(started)
                if started.process is not None and self.signals.requested is None:
                    continue
            self._end(started, code)
            ended = True
        return ended

    def _end(self, started: _Started, code: int) -> None:
        """Record the end of a run, and leave its folder."""
        folder = self.out / started.run.name
        record = read_record(folder)
        failure = None
        finished = read_finished(folder)
        is_done = finished is not None and finished.step >= (started.run.steps or 0)
        if self.signals.requested is None and not is_done:
            failure = failure_of(folder, code)
        if record is not None:
            write_record(record.ended(time.time(), failure), folder)
        if failure is not None:
            logger.error("%s failed: %s", started.run.name, failure)
        elif self.signals.requested is None:
            logger.info("%s is done.", started.run.name)
        self._started.remove(started)
        os.close(started.lock)

    def _stop(self) -> None:
        """Let the processes save their runs, and wait for them."""
        if self._started:
            logger.warning("Waiting for %d runs, which are saved.", len(self._started))
        for started in self._started:
            if started.process is not None:
                with suppress(ProcessLookupError):
                    started.process.send_signal(signal.SIGTERM)
        for started in list(self._started):
            code = started.process.wait() if started.process is not None else 0
            self._end(started, code)


def _lock_with_retry(folder: Path) -> int | None:
    """Lock the folder of a run; retry while another process queries its status."""
    deadline = time.monotonic() + PROBE_SECONDS
    while (held := lock(folder, LOCK)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return held


def failure_of(folder: Path, code: int) -> str:
    """The failure of the last command of a run, on one line: its error message or exit code."""
    path = folder / OUTPUT
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    last = text.rpartition("\n$ ")[2]
    found = re.findall(r"^error: (.*)$", last, re.MULTILINE)
    if found:
        return str(found[-1])
    if code == 0:
        return "stopped by a signal before its last step"
    lines = [line for line in last.splitlines() if line.strip()]
    reason = exit_summary(code)
    return f"{reason}: {lines[-1].strip()}" if code > 0 and len(lines) > 1 else reason


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names of `CUDA_VISIBLE_DEVICES`."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [name for name in stated.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def lock_study(out: Path) -> int:
    """Lock the folder of a study.

    Raises:
        UserError: another process executes it.
    """
    held = lock(out, ".lock")
    if held is None:
        raise UserError(
            f"Another process executes the study in {out}.",
            where=str(out),
            fix="Wait for it (--status shows its state), or choose another folder.",
            code="folder-in-use",
        )
    return held
