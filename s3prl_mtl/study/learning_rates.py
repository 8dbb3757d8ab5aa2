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
from s3prl_mtl.study.record import RunState
from s3prl_mtl.study.settings import StudySettings

FILE = "learning_rates.yaml"
FOLDER = "sweep"
DEFAULT_RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
ROUNDS = (4, 2, 1)
"""The part of the steps after which the rates are compared: a quarter, half, all."""

Execute = Callable[
    [Sequence[StudyRun], Callable[[StudyRun], list[Command]]], Mapping[str, RunState]
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
    left = {task: list(settings.rates) for task in plan.tasks}
    scores: dict[tuple[str, float], tuple[DevScores, int]] = {}
    for part in ROUNDS:
        steps = math.ceil(settings.steps / part)
        runs = {
            (task, rate): sweep_run(plan, task, rate, steps)
            for task, rates in left.items()
            for rate in rates
        }
        rate_of = {run.name: rate for (_, rate), run in runs.items()}

        def commands(run: StudyRun, rate_of: Mapping[str, float] = rate_of) -> list[Command]:
            return commands_of(run, settings, out, rate_of[run.name])

        states = execute(list(runs.values()), commands)
        for key, run in runs.items():
            if states[run.name].status == "done":
                # A sweep that was killed and started again may find runs of later rounds.
                found = read_dev_scores(out / run.name, last_step=steps).get(key[0])
                if found is not None:
                    scores[key] = found, steps
        for task, rates in left.items():
            trained = [rate for rate in rates if (task, rate) in scores]
            if not trained:
                raise UserError(
                    f"No learning rate of {task} gave a result.",
                    where=str(out / FOLDER / plan.folder(task)),
                    fix="See output.txt there; try lower rates (--rates).",
                    code="non-finite",
                )
            left[task] = halve(trained, {r: scores[task, r][0] for r in trained}, part)
    best = {task: rates[0] for task, rates in left.items()}
    _write(best, scores, settings, out / FILE)
    return best


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


def _write(
    best: Mapping[str, float],
    scores: Mapping[tuple[str, float], tuple[DevScores, int]],
    settings: StudySettings,
    path: Path,
) -> None:
    """Write the rates, with the dev scores of all rates as comments."""
    lines = [f"# Learning rates of heads on the frozen encoder {settings.upstream}, found on dev."]
    for task, chosen in best.items():
        lines.append(f"{task}: {chosen:g}" if _is_plain(chosen) else f"{task}: {chosen:.1e}")
        for rate in sorted(settings.rates):
            if (task, rate) in scores:
                score, steps = scores[task, rate]
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
    rates = {}
    for task, value in read_yaml(path, "--learning-rates").items():
        try:
            rates[str(task)] = float(value)
        except (TypeError, ValueError):
            rates[str(task)] = math.nan
        if not 0 < rates[str(task)] < math.inf:
            raise UserError(
                f"{value!r} is not a learning rate.",
                where=f"{task} in {path}",
                fix="For example ks: 1.0e-3.",
                code="invalid-value",
            )
    return rates
