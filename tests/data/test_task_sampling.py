"""Which tasks take part in a step."""

from __future__ import annotations

from collections import Counter

import pytest

from s3prl_mtl.data.task_sampling import task_sampling, tasks_of_steps
from tests.mistakes import user_error

TASKS = ["asr", "ks", "er"]
SIZES = {"asr": 800, "ks": 100, "er": 100}


def shares(rule: str, steps: int = 6000) -> dict[str, float]:
    """The fraction of steps that each task takes part in."""
    tasks_of = task_sampling(rule, TASKS, SIZES, seed=3)
    drawn = [tasks_of(step) for step in range(1, steps + 1)]
    assert all(len(tasks) == 1 for tasks in drawn)
    counts = Counter(task for tasks in drawn for task in tasks)
    return {task: counts[task] / steps for task in TASKS}


def test_by_default_every_task_is_in_every_step() -> None:
    tasks_of = task_sampling("all", TASKS, SIZES, seed=0)
    assert [tasks_of(step) for step in (1, 2, 99)] == [TASKS] * 3


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("proportional", [0.8, 0.1, 0.1]),
        ("temperature:1", [0.8, 0.1, 0.1]),
        ("temperature:3", [0.5, 0.25, 0.25]),  # cube roots of 8, 1 and 1
        ("temperature:1e9", [1 / 3, 1 / 3, 1 / 3]),
        ("weights:asr=2,ks=5,er=1", [2 / 8, 5 / 8, 1 / 8]),
        ("weights:ks=2", [1 / 4, 2 / 4, 1 / 4]),
        ("weights:ks=0", [1 / 2, 0, 1 / 2]),
    ],
)
def test_one_task_is_drawn_by_its_chance(rule: str, expected: list[float]) -> None:
    assert [*shares(rule).values()] == pytest.approx(expected, abs=0.02)


def test_draws_depend_on_seed_and_step_only() -> None:
    first, again, other = (
        [task_sampling("uniform", TASKS, SIZES, seed)(step) for step in range(1, 60)]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert task_sampling("uniform", TASKS, SIZES, 1)(42) == first[41]


def test_tasks_take_turns() -> None:
    tasks_of = task_sampling("every:3", TASKS, SIZES, seed=0)
    assert [tasks_of(step) for step in range(1, 7)] == [["asr"], ["ks"], ["er"]] * 2
    tasks_of = task_sampling("every:2", TASKS, SIZES, seed=0)
    assert [tasks_of(step) for step in range(1, 5)] == [["asr", "er"], ["ks"]] * 2


def test_named_tasks_are_in_some_steps_and_the_others_in_all() -> None:
    tasks_of = task_sampling("every:ks=2,er=4", TASKS, SIZES, seed=0)
    found = [tasks_of(step) for step in range(1, 9)]
    assert all("asr" in tasks for tasks in found)
    assert ["ks" in tasks for tasks in found] == [False, True] * 4
    assert ["er" in tasks for tasks in found] == [False, False, True, False] * 2


@pytest.mark.parametrize(
    "rule",
    [
        "unifrom",
        "uniform:2",
        "temperature",
        "temperature:0",
        "temperature:warm",
        "weights:",
        "weights:asr=-1",
        "weights:asr=0,ks=0,er=0",
        "weights:sr=1",
        "weights:asr=nan",
        "weights:asr=1,asr=2",
        "every:0",
        "every:1.5",
        "every:4",
        "every:asr=3,ks=3,er=4",
        "every:asr=1009,ks=1013,er=1019",
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rule: str) -> None:
    with user_error("invalid-value", where=r"runner\.sampling"):
        task_sampling(rule, TASKS, SIZES, seed=0)


@pytest.mark.parametrize(
    ("rule", "fix"),
    [
        ("temperature:nan", "temperature:2"),
        ("temperature:", "temperature:2"),
        ("weights:ks", "weights:asr=2"),
        ("weights:ks=", "weights:asr=2"),
        ("every:x", "every:2"),
        ("every:0", "every:2"),
        ("uniform:", "uniform"),
    ],
)
def test_the_remedy_is_a_rule_of_the_same_kind(rule: str, fix: str) -> None:
    with user_error("invalid-value", where=r"runner\.sampling", fix=fix):
        task_sampling(rule, TASKS, SIZES, seed=0)


@pytest.mark.parametrize("temperature", ["0.001", "1e-300", "1e300"])
def test_any_temperature_draws(temperature: str) -> None:
    tasks_of = task_sampling(f"temperature:{temperature}", TASKS, SIZES, seed=0)
    drawn = {task for step in range(1, 200) for task in tasks_of(step)}
    largest = max(TASKS, key=lambda task: SIZES[task])
    assert drawn == (set(TASKS) if float(temperature) > 1 else {largest})


def test_a_split_of_unknown_size_has_no_proportion() -> None:
    with user_error("invalid-value", where=r"runner\.sampling"):
        task_sampling("proportional", TASKS, {**SIZES, "ks": None}, seed=0)
    task_sampling("uniform", TASKS, dict.fromkeys(TASKS), seed=0)


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        ("all", [TASKS]),
        ("proportional", [["asr"], ["ks"], ["er"]]),
        ("weights:ks=0", [["asr"], ["er"]]),
        ("every:2", [["asr", "er"], ["ks"]]),
        ("every:ks=2,er=4", [["asr"], ["asr", "ks"], ["asr", "er"]]),
    ],
)
def test_the_sets_of_tasks_of_all_steps(rule: str, steps: list[list[str]]) -> None:
    assert tasks_of_steps(rule, TASKS) == steps
