"""The state of a study as a table, with the time that is left."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from s3prl_mtl.errors import UserError
from s3prl_mtl.study.plan import StudyRun
from s3prl_mtl.study.record import RunStatus
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.tracking.recorder import read_metrics

Kind = tuple[bool, int]
"""Whether the encoder is frozen, and the number of tasks."""


def show_status(
    runs: Sequence[StudyRun],
    states: Mapping[str, RunStatus],
    out: Path,
    jobs: int | None,
    steps: int | None,
) -> None:
    """Print every run with its state, and the time left.

    Args:
        runs: each after those that it needs.
        states: from `survey`.
        out: the folder of the study.
        jobs: runs at once; None for as many as are running.
        steps: of every run, where a run has no config yet.
    """
    totals = {run.name: run.steps or steps_of(out / run.name) for run in runs}
    OUTPUT.print(status_table(runs, states, out, totals))
    places = jobs or max(1, sum(state.status == "running" for state in states.values()))
    left = time_left(runs, states, out, places, steps, totals)
    OUTPUT.print(summary(states, left), highlight=False)


def status_table(
    runs: Sequence[StudyRun],
    states: Mapping[str, RunStatus],
    out: Path,
    totals: Mapping[str, int | None],
) -> Table:
    """Every run with its status, step, time and, if it failed or waits, the reason.

    Args:
        runs: each after those that it needs.
        states: from `survey`.
        out: the folder of the study.
        totals: the steps that each run will have, where they are known.
    """
    table = Table(padding=(0, 1, 0, 0), pad_edge=False)
    for heading, side in (("run", "left"), ("state", "left"), ("step", "right"), ("time", "right")):
        table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("", overflow="fold")
    for run in runs:
        state = states[run.name]
        step = reached(out / run.name, state)
        total = totals[run.name]
        progress = f"{step}" if total in (None, step) else f"{step}/{total}"
        seconds = spent(state)
        table.add_row(
            run.name,
            state.status,
            progress if step else "",
            show_seconds(seconds) if seconds else "",
            reason(run, states),
        )
    return table


def summary(states: Mapping[str, RunStatus], left: float | None) -> str:
    """The number of runs in each state, and the time left."""
    counts = Counter(state.status for state in states.values())
    shown = [f"{counts[name]} {name}" for name in ("done", "running", "waiting", "failed")]
    line = f"{len(states)} runs: {', '.join(entry for entry in shown if entry[0] != '0')}."
    if counts["done"] == len(states):
        return line
    if left is None:
        return f"{line} The time left is known when a first run has progressed."
    return f"{line} About {show_seconds(left)} left."


def reason(run: StudyRun, states: Mapping[str, RunStatus]) -> str:
    """The failure of a run, or the runs that it waits for."""
    state = states[run.name]
    if state.status == "failed":
        return state.record.failure or "" if state.record is not None else ""
    if state.status != "waiting":
        return ""
    missing = [need for need in run.needs if states[need].status != "done"]
    failed = [need for need in missing if states[need].status == "failed"]
    if failed:
        return f"{failed[0]} failed"
    if missing:
        return (
            f"for {len(missing)} runs, first {missing[0]}" if missing[1:] else f"for {missing[0]}"
        )
    if state.outdated:
        return "again: a run that it started from is new"
    return "interrupted" if state.record is not None else ""


def time_left(
    runs: Sequence[StudyRun],
    states: Mapping[str, RunStatus],
    out: Path,
    jobs: int,
    steps: int | None,
    totals: Mapping[str, int | None],
) -> float | None:
    """Seconds until all runs are done, by the speed of those that are running or done.

    Runs of the same scenario and tasks are taken to be equally fast; where there is none, those
    that train the encoder alike, in proportion to their number of tasks. The runs that are left
    are scheduled in their order.

    Args:
        runs: each after those that it needs.
        states: from `survey`.
        out: the folder of the study.
        jobs: runs at once.
        steps: of every run, where `totals` does not have them.
        totals: the steps that each run will have, where they are known.

    Returns:
        None if no run has progressed, or if the number of steps of a run is unknown.
    """
    known = {name: total or steps for name, total in totals.items()}
    for run in runs:
        if known[run.name] is None:
            alike = [known[other.name] for other in runs if _alike(run, other)]
            known[run.name] = next((total for total in alike if total), None)
    pace: dict[str, tuple[float, int]] = {}
    for run in runs:
        state = states[run.name]
        seconds, step = spent(state), reached(out / run.name, state)
        if seconds and step:
            pace[run.name] = seconds, step
    ends: dict[str, float] = {}
    places = [0.0] * max(1, jobs)
    heapq.heapify(places)
    for run in runs:
        if states[run.name].status == "done":
            ends[run.name] = 0.0
            continue
        total, seconds_per_step = known[run.name], _seconds_per_step(run, runs, pace)
        if total is None or seconds_per_step is None:
            return None
        # An outdated run starts anew.
        done = 0 if states[run.name].outdated else reached(out / run.name, states[run.name])
        ready = max((ends[need] for need in run.needs), default=0.0)
        begin = max(ready, heapq.heappop(places))
        ends[run.name] = begin + max(0, total - done) * seconds_per_step
        heapq.heappush(places, ends[run.name])
    return max(ends.values(), default=0.0)


def _alike(one: StudyRun, other: StudyRun) -> bool:
    return one.frozen == other.frozen and (not one.frozen or one.tasks == other.tasks)


def _seconds_per_step(
    run: StudyRun, runs: Sequence[StudyRun], pace: Mapping[str, tuple[float, int]]
) -> float | None:
    for chosen in (
        [other for other in runs if _alike(run, other) and len(run.tasks) == len(other.tasks)],
        [other for other in runs if run.frozen == other.frozen],
        list(runs),
    ):
        known = [(pace[other.name], len(other.tasks)) for other in chosen if other.name in pace]
        if known:
            work = sum(step * tasks for (_, step), tasks in known)
            return sum(seconds for (seconds, _), _ in known) / work * len(run.tasks)
    return None


def spent(state: RunStatus) -> float:
    """Seconds that a run has taken so far."""
    record = state.record
    if record is None:
        return 0.0
    running = state.status == "running" and record.since is not None
    return record.seconds + (time.time() - record.since if running and record.since else 0.0)


def reached(folder: Path, state: RunStatus) -> int:
    """The last step that a run has logged, or that of its newest checkpoint."""
    if state.status != "running":
        return state.step
    try:
        steps = [entry["step"] for entry in read_metrics(folder)]
    except UserError:
        return state.step
    return max([state.step, *steps[-1:]])


def steps_of(folder: Path) -> int | None:
    """The steps that a run will have; None before it has a readable config."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        # Not by OmegaConf: it takes 40 ms for each of hundreds of files.
        config: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        total = config["runner"]["total_steps"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):
        return None
    return total if isinstance(total, int) else None


def show_seconds(seconds: float) -> str:
    """A duration such as `2 d 3 h`, `1 h 5 min`, `12 min`, `40 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest} s"
