"""Learning rates of the frozen scenario: search them on dev; read and write their files.

SUPERB searches the rate of every task on a log scale. Here by successive halving (Jamieson and
Talwalkar, 2016): all rates are trained for a quarter of the steps, the better half of them
continues to half of the steps, and the better half of these to the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.study.commands import Command, commands_of
from s3prl_mtl.study.dev_scores import DevScores, read_dev_scores, selecting_metric
from s3prl_mtl.study.plan import Plan, StudyRun
from s3prl_mtl.study.record import RunStatus, survey
from s3prl_mtl.study.settings import StudySettings

FILE = "learning_rates.yaml"
FOLDER = "sweep"
DEFAULT_RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
ROUNDS = (4, 2, 1)
"""The part of the steps after which the rates are compared: a quarter, half, all."""

Execute = Callable[
    [Sequence[StudyRun], Callable[[StudyRun], list[Command]]], Mapping[str, RunStatus]
]
"""Executes runs with the commands of each, and returns their states."""


def sweep(settings: StudySettings, out: Path, execute: Execute) -> dict[str, float]:
    """Find the learning rate of each task's head on the frozen encoder, and write them to `FILE`.

    A rate with which a run fails, as by losses that are not finite, counts as the worst.

    Args:
        settings: with `rates`, and `steps` of the longest runs.
        out: absolute path of the folder of the study.
        execute: executes the runs of a round.

    Returns:
        the rates by task.

    Raises:
        UserError: every rate of a task failed, or a task declares no metric.
    """
    assert settings.steps is not None
    plan = settings.plan
    for task in plan.tasks:
        selecting_metric(plan.spec(task))
    rounds = Rounds(settings, out)
    while rounds.runs:

        def commands(run: StudyRun, rates: Mapping[str, float] = rounds.rates) -> list[Command]:
            return commands_of(run, settings, out, rates[run.name])

        rounds.end(execute(rounds.runs, commands))
    _write(rounds, settings, out / FILE)
    return rounds.best


class Rounds:
    """The course of a search: the runs of the present round, and the scores so far.

    Args:
        settings: with `rates`, and `steps` of the longest runs.
        out: folder of the study.
    """

    def __init__(self, settings: StudySettings, out: Path) -> None:
        self.settings = settings
        self.out = out
        self.left = {task: list(settings.rates) for task in settings.plan.tasks}
        self.scores: dict[tuple[str, float], tuple[DevScores, int]] = {}
        self._parts = list(ROUNDS)

    @property
    def best(self) -> dict[str, float]:
        """The best rate of each task, after a round."""
        return {task: rates[0] for task, rates in self.left.items()}

    @property
    def steps(self) -> int:
        """To which the runs of the present round are trained."""
        assert self.settings.steps is not None
        return math.ceil(self.settings.steps / self._parts[0])

    @property
    def runs(self) -> list[StudyRun]:
        """The runs of the current round; empty after the last one."""
        return [run for _, _, run in self._present()]

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of each run of the present round, by name."""
        return {run.name: rate for _, rate, run in self._present()}

    def _present(self) -> list[tuple[str, float, StudyRun]]:
        return [
            (task, rate, sweep_run(self.settings.plan, task, rate, self.steps))
            for task, rates in self.left.items()
            for rate in rates
            if self._parts
        ]

    def end(self, states: Mapping[str, RunStatus]) -> None:
        """End the present round: keep the better rates.

        Raises:
            UserError: every rate of a task failed.
        """
        for task, rate, run in self._present():
            if states[run.name].status == "done":
                # A sweep that was killed and started again may find runs of later rounds.
                found = read_dev_scores(self.out / run.name, last_step=self.steps).get(task)
                if found is not None:
                    self.scores[task, rate] = found, self.steps
        for task, rates in self.left.items():
            trained = [rate for rate in rates if (task, rate) in self.scores]
            if not trained:
                raise UserError(
                    f"No learning rate of {task} gave a result.",
                    where=str(self.out / FOLDER / self.settings.plan.folder(task)),
                    fix="See output.txt there; try lower rates (--rates).",
                    code="non-finite",
                )
            scores = {rate: self.scores[task, rate][0] for rate in trained}
            self.left[task] = halve(trained, scores, self._parts[0])
        del self._parts[0]


def runs_so_far(settings: StudySettings, out: Path) -> list[StudyRun]:
    """Every run of an unfinished search so far, with the steps of its last round."""
    rounds = Rounds(settings, out)
    found: dict[str, StudyRun] = {}
    while rounds.runs:
        found |= {run.name: run for run in rounds.runs}
        states = survey(rounds.runs, out)
        if any(state.status in ("waiting", "running") for state in states.values()):
            break
        try:
            rounds.end(states)
        except UserError:  # every rate of a task failed
            break
    return list(found.values())


def sweep_run(plan: Plan, task: str, rate: float, steps: int) -> StudyRun:
    """The run of a task with a rate; a longer one continues it."""
    name = f"{FOLDER}/{plan.folder(task)}/lr{rate:g}"
    return StudyRun(name=name, scenario="a", tasks=(task,), seed=plan.seeds[0], steps=steps)


def halve(rates: Sequence[float], scores: Mapping[float, DevScores], part: int) -> list[float]:
    """The better half of some rates, the best first; after the last round the best one.

    Of rates with equal scores, the lower is better.
    """

    def key(rate: float) -> tuple[float, float]:
        score = scores[rate]
        return (score.best if score.metric.better == "lower" else -score.best), rate

    kept = 1 if part == 1 else max(2, math.ceil(len(rates) / 2))
    return sorted(rates, key=key)[:kept]


def _write(rounds: Rounds, settings: StudySettings, path: Path) -> None:
    """Write the rates, with the dev scores of all rates as comments."""
    lines = [f"# Learning rates of heads on the frozen encoder {settings.upstream}, found on dev."]
    for task, chosen in rounds.best.items():
        lines.append(f"{task}: {chosen:g}" if _is_plain(chosen) else f"{task}: {chosen:.1e}")
        for rate in sorted(settings.rates):
            if (task, rate) in rounds.scores:
                score, steps = rounds.scores[task, rate]
                shown = f"{score.metric.title} {score.metric.shown(score.best)}"
                lines.append(f"#   {rate:g}: {score.split} {shown}, {steps} steps")
            else:
                lines.append(f"#   {rate:g}: failed")
    replace_text(path, "\n".join(lines) + "\n")


def _is_plain(rate: float) -> bool:
    # YAML 1.1 takes 1e-05 as a string.
    return "e" not in f"{rate:g}"


def read_learning_rates(path: Path) -> dict[str, float]:
    """The learning rate of each task in a YAML file, `{ks: 1.0e-3, ...}`.

    Raises:
        UserError: it is missing, or holds something else.
    """
    return check_rates(read_yaml(path, "--learning-rates"), str(path))


def check_rates(values: Mapping[str, object], where: str) -> dict[str, float]:
    """The learning rates as positive numbers.

    Args:
        values: by task.
        where: source, for errors.

    Raises:
        UserError: a value is something else.
    """
    rates = {}
    for task, value in values.items():
        try:
            rates[task] = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            rates[task] = math.nan
        if not 0 < rates[task] < math.inf:
            raise UserError(
                f"{value!r} is not a learning rate.",
                where=f"{task} in {where}",
                fix="For example ks: 1.0e-3.",
                code="invalid-value",
            )
    return rates
