"""Locks, records and status of the runs of a study."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from s3prl_mtl.checkpoint.files import states_files
from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.fileio.paths import move_aside
from s3prl_mtl.study.plan import StudyRun
from s3prl_mtl.training.run_dir import read_finished

RECORD = "study_run.json"
LOCK = ".study.lock"
OUTPUT = "output.txt"
OUTDATED = "outdated"
"""Folder in that of the study for runs whose needs were trained again since."""

Status = Literal["done", "running", "waiting", "failed"]


@dataclass(frozen=True)
class Record:
    """The course of a run, written by the study that starts it.

    Attributes:
        started_from: the id of each needed run when this one was started, by name.
        seconds: that earlier starts took.
        since: time of the last start, in seconds since the epoch; None if it has ended.
        failure: why the last start failed.
    """

    started_from: Mapping[str, str]
    seconds: float = 0.0
    since: float | None = None
    failure: str | None = None

    def ended(self, now: float, failure: str | None = None) -> Record:
        """The same after a start has ended."""
        begun = now if self.since is None else self.since
        seconds = self.seconds + max(0.0, now - begun)
        return replace(self, seconds=seconds, since=None, failure=failure)


@dataclass(frozen=True)
class RunStatus:
    """Status of a run.

    Attributes:
        status: one of `Status`.
        id: of a run that is done.
        step: of its newest checkpoint or, for a run that is done, its last.
        outdated: a run that it started from was trained again since, or no longer exists.
        record: of its starts; None if no study started it.
    """

    status: Status
    id: str | None = None
    step: int = 0
    outdated: bool = False
    record: Record | None = None


def survey(runs: Sequence[StudyRun], out: Path) -> dict[str, RunStatus]:
    """The state of every run, by name. Nothing is written.

    Args:
        runs: each after those that it needs.
        out: the folder of the study.
    """
    states: dict[str, RunStatus] = {}
    for run in runs:
        folder = out / run.name
        record = read_record(folder)
        ids = {need: states[need].id for need in run.needs}
        # A run without a record was started by hand, from what is there.
        outdated = record is not None and any(
            record.started_from.get(need) != number for need, number in ids.items()
        )
        finished = read_finished(folder)
        if finished is not None and finished.step < (run.steps or 0):
            finished = None
        steps = states_files(folder)
        step = int(steps[-1].stem.removeprefix("states-")) if steps else 0
        if is_locked(folder):
            state = RunStatus("running", step=step, record=record)
        elif finished is not None and not outdated and None not in ids.values():
            state = RunStatus("done", finished.id, finished.step, record=record)
        elif record is not None and record.failure is not None and not outdated:
            state = RunStatus("failed", step=step, record=record)
        else:
            state = RunStatus("waiting", step=step, outdated=outdated, record=record)
        states[run.name] = state
    return states


def started(runs: Sequence[StudyRun], out: Path) -> list[StudyRun]:
    """The runs that are running, or have results or a checkpoint."""
    states = survey(runs, out)
    return [run for run in runs if states[run.name].step or states[run.name].status == "running"]


def read_record(folder: Path) -> Record | None:
    """The record of a run; None if there is none, or it is damaged."""
    try:
        content: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Record(**content)
    except (OSError, ValueError, TypeError):
        return None


def write_record(record: Record, folder: Path) -> None:
    """Write the record of a run."""
    replace_text(folder / RECORD, json.dumps(asdict(record)) + "\n")


def begin(run: StudyRun, out: Path, states: Mapping[str, RunStatus]) -> None:
    """Record the start of a run. Call with its lock held.

    Args:
        run: all of its needs are done.
        out: the folder of the study.
        states: of all runs.
    """
    folder = out / run.name
    record = read_record(folder)
    if record is None:
        record = Record({need: str(states[need].id) for need in run.needs})
    elif record.since is not None:
        # The process that started it was killed; its newest file tells when.
        record = record.ended(_last_change(folder))
    if not states_files(folder):
        # No checkpoint to resume. `train -a` would merge this config with the flags of the command,
        # which are complete.
        (folder / "config.yaml").unlink(missing_ok=True)
    write_record(replace(record, since=time.time(), failure=None), folder)


def adopt(runs: Sequence[StudyRun], out: Path) -> None:
    """Record the present dependencies of runs that finished outside the study."""
    states = survey(runs, out)
    for run in runs:
        state = states[run.name]
        if state.status == "done" and state.record is None:
            ids = {need: str(states[need].id) for need in run.needs}
            write_record(Record(ids), out / run.name)


def set_aside(run: StudyRun, out: Path) -> Path:
    """Move the folder of an outdated run away, and return where."""
    place = out / OUTDATED / run.name
    place.parent.mkdir(parents=True, exist_ok=True)
    return move_aside(out / run.name, place)


def _last_change(folder: Path) -> float:
    times = [0.0]
    for name in ("metrics.jsonl", "log.txt", OUTPUT):
        with suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


def lock(folder: Path, name: str = LOCK) -> int | None:
    """Lock a folder; None if another process has.

    The lock belongs to the open file, which child processes inherit if it is passed to them: it is
    held until the last of them has ended, whatever happens to the parent.

    Returns:
        the file descriptor, to be closed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_locked(folder: Path, name: str = LOCK) -> bool:
    """Whether a process works in a folder."""
    try:
        descriptor = os.open(folder / name, os.O_RDWR)
    except OSError:
        return False
    try:
        # Shared: two processes that ask at the same time do not disturb each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
