"""Sampling of the tasks of a training step (`--sampling`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.errors import UserError, nearest

RULES = ("all", "uniform", "proportional", "temperature", "weights", "every")

TasksOf = Callable[[int], list[str]]
"""The tasks of a step, by its number from 1, in the order of the run; a pure function."""

_LONGEST_PERIOD = 1_000_000


def task_sampling(
    rule: str, tasks: Sequence[str], utterances: Mapping[str, int | None], seed: int
) -> TasksOf:
    """The tasks of every step by a rule.

    - ``all``: every task in every step.
    - ``uniform``, ``proportional``, ``temperature:T``, ``weights:asr=2,ks=1,...``: one task in each
      step, drawn at random: all alike, by the number of training utterances n, by n^(1/T), or by
      the given weights (1 for a task that is not named).
    - ``every:N``: each task in every N-th step, one after the other.
    - ``every:ks=4,er=2``: a named task in every so many steps, the others in every step.

    Args:
        rule: one of these.
        tasks: of the run.
        utterances: of the training split of each task; None where unknown.
        seed: of the draws.

    Raises:
        UserError: the rule is malformed, names another task, would have steps without a task, or
            needs the size of a split that is not known.
    """
    kind, _, rest = rule.partition(":")
    if kind not in RULES:
        raise _invalid(f"The rule {kind!r} does not exist.", nearest(kind, list(RULES)))
    needs_values = kind in ("temperature", "weights", "every")
    if needs_values and not rest.strip():
        raise _invalid(f"{rule!r} is not complete.", f"Write {_example(kind, tasks)}.")
    if not needs_values and ":" in rule:
        raise _invalid(f"{kind} takes no values.", f"Write {kind}.")
    if kind == "all":
        return lambda step: list(tasks)
    if kind == "every":
        return _in_turn(rest, tasks)
    if kind == "weights":
        weights = {task: 1.0 for task in tasks} | _values(rest, tasks, kind)
    elif kind == "uniform":
        weights = {task: 1.0 for task in tasks}
    else:
        temperature = 1.0 if kind == "proportional" else _number(rest, kind, tasks)
        if temperature <= 0:
            raise _invalid(f"A temperature of {temperature:g}.", "Give a number above 0.")
        sizes = {task: _size(task, utterances) for task in tasks}
        # Relative to the largest, so that no power is too large for a float.
        largest = max(*sizes.values(), 1)
        weights = {task: (size / largest) ** (1 / temperature) for task, size in sizes.items()}
    if min(weights.values()) < 0 or not any(weights.values()):
        raise _invalid(f"{rule!r} has a negative weight, or only 0.", "Give numbers above 0.")
    return _at_random(weights, seed)


def depends_on_sizes(rule: str) -> bool:
    """Whether a rule needs the number of training utterances."""
    return rule.partition(":")[0] in ("proportional", "temperature")


def tasks_of_steps(rule: str, tasks: Sequence[str]) -> list[list[str]]:
    """The different sets of tasks that the steps of a rule have.

    Raises:
        UserError: as :func:`task_sampling`.
    """
    tasks_of = task_sampling(rule, tasks, dict.fromkeys(tasks, 1), seed=0)
    kind, _, rest = rule.partition(":")
    if kind == "weights":
        weights = _values(rest, tasks, kind)
        return [[task] for task in tasks if weights.get(task, 1) > 0]
    if kind in ("all", "every"):
        steps = math.lcm(*_periods(rest, tasks).values()) if kind == "every" else 1
        return [list(own) for own in dict.fromkeys(tuple(tasks_of(n + 1)) for n in range(steps))]
    return [[task] for task in tasks]


def _at_random(weights: Mapping[str, float], seed: int) -> TasksOf:
    tasks = list(weights)
    chances = torch.tensor(list(weights.values()), dtype=torch.float64)

    def tasks_of(step: int) -> list[str]:
        # A generator for each step: any step can be asked for.
        generator = torch.Generator().manual_seed(derived_seed("tasks", seed, step))
        return [tasks[int(torch.multinomial(chances, 1, generator=generator))]]

    return tasks_of


def _periods(text: str, tasks: Sequence[str]) -> dict[str, int]:
    """The number of steps after which each task returns."""
    named = "=" in text
    every = "every"
    values = (
        _values(text, tasks, every) if named else dict.fromkeys(tasks, _number(text, every, tasks))
    )
    for task, value in values.items():
        if value < 1 or value != int(value):
            raise _invalid(
                f"{task} cannot train every {value:g} steps.",
                "Give whole numbers from 1, such as every:2 or every:ks=4.",
            )
    return {task: int(values.get(task, 1)) for task in tasks}


def _in_turn(text: str, tasks: Sequence[str]) -> TasksOf:
    periods = _periods(text, tasks)

    def tasks_of(step: int) -> list[str]:
        return [t for place, t in enumerate(tasks) if (step - 1 - place) % periods[t] == 0]

    period = math.lcm(*periods.values())
    if period > _LONGEST_PERIOD:
        raise _invalid(f"The steps repeat after {period}.", "Give numbers with common factors.")
    empty = next((step for step in range(1, period + 1) if not tasks_of(step)), None)
    if empty is not None:
        raise _invalid(
            f"With {text!r}, step {empty} has no task.",
            f"Give at most the number of tasks, {len(tasks)}, or leave a task in every step.",
        )
    return tasks_of


def _size(task: str, utterances: Mapping[str, int | None]) -> int:
    size = utterances[task]
    if size is None:
        raise _invalid(
            f"The number of training utterances of {task} is not known.",
            "Use weights:..., with a number for each task.",
        )
    return size


def _values(text: str, tasks: Sequence[str], kind: str) -> dict[str, float]:
    """The numbers of `asr=2,ks=1`."""
    values: dict[str, float] = {}
    for entry in text.split(","):
        task, equals, number = map(str.strip, entry.partition("="))
        if not equals:
            raise _invalid(
                f"{entry!r} is not of the form task=number.", f"Write {_example(kind, tasks)}."
            )
        if task not in tasks:
            raise _invalid(f"The run has no task {task!r}.", nearest(task, list(tasks)))
        if task in values:
            raise _invalid(f"{task} is given more than once.", "Give each task once.")
        values[task] = _number(number, kind, tasks)
    return values


def _number(text: str, kind: str, tasks: Sequence[str]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _invalid(f"{text!r} is not a finite number.", f"Write {_example(kind, tasks)}.")
    return value


def _example(kind: str, tasks: Sequence[str]) -> str:
    """A rule of a kind, for errors."""
    examples = {"temperature": "temperature:2", "every": f"every:2, or every:{tasks[0]}=2"}
    return examples.get(kind, f"weights:{tasks[0]}=2")


def _invalid(what: str, fix: str) -> UserError:
    return UserError(what, where="runner.sampling (--sampling)", fix=fix, code="invalid-value")
