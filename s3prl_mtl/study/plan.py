"""The runs of a study and their dependencies.

The scenarios are those of Chen et al., "Speech Representation Learning through Self-supervised
Pretraining and Multi-task Finetuning" (2021), and (d), transfer from interpolated encoders:

    (a) each head alone, encoder frozen ──heads──> (b1) all tasks, encoder trained
                                        ──heads──> (b2) the same, without one task
    (b2) ──encoder──> (c) the head of that task, encoder frozen
    (b2) ──merged with the pre-trained encoder──> (d) the same
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.registry.plugins import split_name
from s3prl_mtl.s3prl_compat.task_spec import is_s3prl_task, task_name


@dataclass(frozen=True)
class Scenario:
    """One way to train on the tasks of a study.

    Attributes:
        title: for reports.
        trains: the tasks of a run: ``each`` alone, ``all``, or all ``without one``.
        only_left_out: ``each`` stands for the tasks that are left out elsewhere.
        heads: the scenario whose heads the run starts from.
        encoder: the scenario whose encoder the run starts from.
        merged: that encoder is first interpolated with the pre-trained one.
    """

    title: str
    trains: Literal["each", "all", "without one"]
    only_left_out: bool = False
    heads: str | None = None
    encoder: str | None = None
    merged: bool = False

    @property
    def frozen(self) -> bool:
        """Whether the encoder is not trained."""
        return self.trains == "each"


SCENARIOS = {
    "a": Scenario("each head on the frozen encoder", "each"),
    "b1": Scenario("all tasks, encoder trained", "all", heads="a"),
    "b2": Scenario("all tasks but one, encoder trained", "without one", heads="a"),
    "c": Scenario(
        "the head of the left-out task on the frozen encoder of (b-2)",
        "each",
        only_left_out=True,
        encoder="b2",
    ),
    "d": Scenario(
        "as (c), encoder merged with the pre-trained one",
        "each",
        only_left_out=True,
        encoder="b2",
        merged=True,
    ),
}
"""By name, in an order in which every scenario comes after those that it starts from."""

PAPER = ("a", "b1", "b2", "c")
"""The scenarios of the paper."""


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One training of a study.

    Attributes:
        name: its folder in that of the study.
        scenario: a key of `SCENARIOS`.
        tasks: that it trains.
        left_out: the task that the run, or the one that it starts from, leaves out.
        alpha: weight of the tuned encoder in a merged one.
        seed: of every random choice.
        needs: names of the runs whose weights it starts from.
        steps: to which it has to be trained; None for those of its config.
    """

    name: str
    scenario: str
    tasks: tuple[str, ...]
    left_out: str | None = None
    alpha: float | None = None
    seed: int
    needs: tuple[str, ...] = ()
    steps: int | None = None

    @property
    def frozen(self) -> bool:
        """Whether the encoder is not trained."""
        return SCENARIOS[self.scenario].frozen


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a study.

    Args:
        specs: the tasks, as after `-d`.
        scenarios: keys of `SCENARIOS`; those that they start from are added.
        seeds: one set of runs for each.
        alphas: of scenario d.
        leave_out: the tasks that b2 leaves out in turn, and of c and d; None for all.

    Raises:
        UserError: an unknown scenario or task, a value that is given twice, or too few tasks.
    """

    specs: tuple[str, ...]
    scenarios: tuple[str, ...] = PAPER
    seeds: tuple[int, ...] = (0,)
    alphas: tuple[float, ...] = ()
    leave_out: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        given: tuple[tuple[str, tuple[object, ...]], ...] = (
            ("-d", self.tasks),
            ("--seeds", self.seeds),
            ("--alphas", self.alphas),
        )
        for flag, values in given:
            for value in values:
                if values.count(value) > 1:
                    raise UserError(
                        f"{value} is given twice.", where=flag, code="conflicting-options"
                    )
        for scenario in self.scenarios:
            if scenario not in SCENARIOS:
                raise UserError(
                    f"There is no scenario {scenario!r}.",
                    where="--scenario",
                    fix=nearest(scenario, list(SCENARIOS)),
                    code="unknown-name",
                )
        for task in self.leave_out or ():
            if task not in self.tasks:
                raise UserError(
                    f"The study does not have the task {task!r}.",
                    where="--leave_out",
                    fix=nearest(task, list(self.tasks)),
                    code="unknown-name",
                )
        if len(self.tasks) < 2 and "b2" in self.needed_scenarios:
            raise UserError(
                "A study of a single task has no task to leave out.",
                where="-d",
                fix="Name several tasks, or choose --scenario a,b1.",
                code="conflicting-options",
            )
        if "d" in self.scenarios and not self.alphas:
            raise UserError("Scenario d needs alphas.", where="--alphas", code="missing-option")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks in the runs."""
        return names_of(self.specs)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The tasks that b2 leaves out in turn."""
        return self.tasks if self.leave_out is None else self.leave_out

    @property
    def needed_scenarios(self) -> tuple[str, ...]:
        """The scenarios with those that they start from, in order."""
        needed = set(self.scenarios)
        for name, scenario in reversed(SCENARIOS.items()):
            if name in needed:
                needed |= set(filter(None, (scenario.heads, scenario.encoder)))
        return tuple(name for name in SCENARIOS if name in needed)

    @cached_property
    def runs(self) -> tuple[StudyRun, ...]:
        """All runs, each after those that it needs; one seed after the other."""
        return tuple(
            run
            for seed in self.seeds
            for scenario in self.needed_scenarios
            for run in self._runs_of(scenario, seed)
        )

    def runs_of(self, scenarios: Sequence[str]) -> list[StudyRun]:
        """The runs of scenarios, and those that they start from.

        Raises:
            UserError: an unknown scenario.
        """
        needed = replace(self, scenarios=tuple(scenarios)).needed_scenarios
        return [run for run in self.runs if run.scenario in needed]

    def run(self, name: str) -> StudyRun:
        """A run by its name.

        Raises:
            UserError: there is none.
        """
        for run in self.runs:
            if run.name == name:
                return run
        raise UserError(
            f"The study has no run {name!r}.",
            where="--run",
            fix=nearest(name, [run.name for run in self.runs]),
            code="unknown-name",
        )

    def spec(self, task: str) -> str:
        """The word after `-d` for a task."""
        return self.specs[self.tasks.index(task)]

    def _runs_of(self, name: str, seed: int) -> Iterator[StudyRun]:
        scenario = SCENARIOS[name]
        base = f"{name}/seed{seed}"
        if scenario.trains == "each":
            for task in self.left_out if scenario.only_left_out else self.tasks:
                for alpha in self.alphas if scenario.merged else (None,):
                    suffix = "" if alpha is None else f"-alpha{alpha:g}"
                    yield StudyRun(
                        name=f"{base}/{self.folder(task)}{suffix}",
                        scenario=name,
                        tasks=(task,),
                        left_out=task if scenario.only_left_out else None,
                        alpha=alpha,
                        seed=seed,
                        needs=(self._without(scenario.encoder, seed, task),)
                        if scenario.encoder
                        else (),
                    )
            return
        left_out: Sequence[str | None] = (None,) if scenario.trains == "all" else self.left_out
        for one_out in left_out:
            tasks = tuple(other for other in self.tasks if other != one_out)
            yield StudyRun(
                name=base if one_out is None else self._without(name, seed, one_out),
                scenario=name,
                tasks=tasks,
                left_out=one_out,
                seed=seed,
                needs=tuple(f"{scenario.heads}/seed{seed}/{self.folder(one)}" for one in tasks),
            )

    def _without(self, scenario: str, seed: int, task: str) -> str:
        return f"{scenario}/seed{seed}/without-{self.folder(task)}"

    def folder(self, task: str) -> str:
        """The name of a folder for a task: the plain name if no other task has it."""
        plain = [split_name(other)[1] for other in self.tasks]
        own = split_name(task)[1]
        return re.sub(r"[^\w.-]+", "-", own if plain.count(own) == 1 else task)


def names_of(specs: Iterable[str]) -> tuple[str, ...]:
    """The names of tasks in a run: of experts of s3prl, without their places."""
    return tuple(task_name(spec) if is_s3prl_task(spec) else spec for spec in specs)


def depth(runs: Sequence[StudyRun]) -> dict[str, int]:
    """The longest chain of runs before each run, by name; 0 for one without needs."""
    depths: dict[str, int] = {}
    for run in runs:
        depths[run.name] = max((depths[need] + 1 for need in run.needs), default=0)
    return depths
