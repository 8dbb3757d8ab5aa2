"""The runs of a study and their dependencies."""

from __future__ import annotations

from collections import Counter

import pytest

from s3prl_mtl.study.plan import Plan, depth
from tests.mistakes import user_error

NINE = ("asr", "pr", "sf", "ks", "ic", "sid", "er", "sv", "sd")
EVERYTHING = Plan(
    specs=NINE, scenarios=("a", "b1", "b2", "c", "d"), seeds=(0, 1), alphas=(0.25, 0.5)
)


def test_the_table_of_the_paper_takes_28_runs() -> None:
    runs = Plan(specs=NINE).runs
    assert Counter(run.scenario for run in runs) == {"a": 9, "b1": 1, "b2": 9, "c": 9}


def test_names_are_unique_and_every_run_comes_after_those_that_it_needs() -> None:
    seen: set[str] = set()
    for run in EVERYTHING.runs:
        assert set(run.needs) <= seen
        assert run.name not in seen
        seen.add(run.name)


def test_runs_need_runs_of_their_own_seed_only() -> None:
    seeds = {run.name: run.seed for run in EVERYTHING.runs}
    assert all(seeds[need] == run.seed for run in EVERYTHING.runs for need in run.needs)


def test_joint_runs_start_from_the_heads_of_exactly_their_tasks() -> None:
    plan = Plan(specs=NINE)
    heads = {run.name: run.tasks[0] for run in plan.runs if run.scenario == "a"}
    for run in plan.runs:
        if run.scenario in ("b1", "b2"):
            assert [heads[need] for need in run.needs] == list(run.tasks)
            assert set(run.tasks) == set(NINE) - {run.left_out}


@pytest.mark.parametrize("scenario", ["c", "d"])
def test_transfer_needs_the_run_that_left_its_task_out(scenario: str) -> None:
    runs = {run.name: run for run in EVERYTHING.runs}
    for run in runs.values():
        if run.scenario == scenario:
            (need,) = run.needs
            assert runs[need].scenario == "b2" and (runs[need].left_out,) == run.tasks


def test_scenario_d_has_a_run_for_each_alpha() -> None:
    alphas = Counter(run.alpha for run in EVERYTHING.runs if run.scenario == "d")
    assert alphas == {0.25: 18, 0.5: 18}


def test_scenarios_bring_those_that_they_start_from() -> None:
    assert Plan(specs=NINE, scenarios=("c",)).needed_scenarios == ("a", "b2", "c")
    assert Plan(specs=NINE, scenarios=("a",)).needed_scenarios == ("a",)


def test_a_single_task_left_out_gives_a_pair_of_runs() -> None:
    runs = Plan(specs=NINE, leave_out=("ks",)).runs
    assert Counter(run.scenario for run in runs) == {"a": 9, "b1": 1, "b2": 1, "c": 1}


def test_tasks_of_the_same_plain_name_have_folders_of_their_own() -> None:
    names = [run.name for run in Plan(specs=("ks", "other:ks", "s3prl:sd")).runs]
    assert names[:3] == ["a/seed0/ks", "a/seed0/other-ks", "a/seed0/s3prl-sd"]


def test_runs_of_a_depth_need_runs_of_smaller_depths_only() -> None:
    depths = depth(EVERYTHING.runs)
    by_scenario = {run.scenario: depths[run.name] for run in EVERYTHING.runs}
    assert by_scenario == {"a": 0, "b1": 1, "b2": 1, "c": 2, "d": 2}


@pytest.mark.parametrize(
    ("settings", "code", "where"),
    [
        ({"scenarios": ("e",)}, "unknown-name", "--scenario"),
        ({"leave_out": ("er",)}, "unknown-name", "--leave_out"),
        ({"specs": ("ks",)}, "conflicting-options", "-d"),
        ({"specs": ("ks", "ks")}, "conflicting-options", "-d"),
        ({"seeds": (1, 1)}, "conflicting-options", "--seeds"),
        ({"scenarios": ("d",)}, "missing-option", "--alphas"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(settings, code: str, where: str) -> None:
    with user_error(code, where=where):
        Plan(**{"specs": ("ks", "ic"), **settings})
