"""The time left of a study."""

from __future__ import annotations

from pathlib import Path

from s3prl_mtl.study.plan import Plan
from s3prl_mtl.study.record import Record, RunStatus
from s3prl_mtl.study.status import show_seconds, time_left

PLAN = Plan(specs=("ks", "er"), scenarios=("a", "b1"))


def left(tmp_path: Path, jobs: int, **states: RunStatus) -> float | None:
    """Of two heads and one joint run with 10 steps each."""
    known = {name.replace("__", "/"): state for name, state in states.items()}
    every = {run.name: known.get(run.name, RunStatus("waiting")) for run in PLAN.runs}
    return time_left(PLAN.runs, every, tmp_path, jobs, 10, dict.fromkeys(every))


def done(seconds: float) -> RunStatus:
    return RunStatus("done", "id", 10, record=Record({}, seconds=seconds))


def test_it_is_unknown_before_the_first_run(tmp_path: Path) -> None:
    assert left(tmp_path, 1) is None


def test_unknown_runs_are_as_fast_as_others_by_their_number_of_tasks(tmp_path: Path) -> None:
    # A head took 100 s: another 100 s for the other head, 200 s for the joint run of two tasks.
    assert left(tmp_path, 1, a__seed0__ks=done(100)) == 300


def test_runs_of_the_same_kind_decide_where_there_are_some(tmp_path: Path) -> None:
    half = RunStatus("waiting", step=5, record=Record({}, seconds=400))
    assert left(tmp_path, 1, a__seed0__ks=done(100), a__seed0__er=done(100), b1__seed0=half) == 400


def test_runs_beside_each_other_and_waiting_for_each_other_are_scheduled(tmp_path: Path) -> None:
    state = RunStatus("waiting", step=5, record=Record({}, seconds=50))
    # Both heads at once in 50 s and 100 s, then the joint run in 200 s.
    assert left(tmp_path, 2, a__seed0__ks=state) == 300
    assert left(tmp_path, 1, a__seed0__ks=state) == 350


def test_nothing_is_left_of_a_finished_study(tmp_path: Path) -> None:
    every = {"a__seed0__ks": done(1), "a__seed0__er": done(1), "b1__seed0": done(1)}
    assert left(tmp_path, 1, **every) == 0


def test_durations_have_two_units_at_most() -> None:
    shown = [show_seconds(seconds) for seconds in (40, 720, 3900, 2 * 86400 + 3 * 3600 + 60)]
    assert shown == ["40 s", "12 min", "1 h 5 min", "2 d 3 h"]
