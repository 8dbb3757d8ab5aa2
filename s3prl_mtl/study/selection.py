"""Choose one checkpoint for many tasks by their scores on dev.

The rules:

    per-task     each task's own best step: a checkpoint for each task
    mean-gain    the step with the highest mean relative gain over scenario (a)
    rank         the step with the best mean rank, of the steps by each task
    worst-case   the step with the highest relative gain of the task that gains least
    last         the last evaluated step
    average:K    the mean of the weights of the last K checkpoints
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.errors import UserError
from s3prl_mtl.study.dev_scores import DevScores
from s3prl_mtl.tracking.recorder import read_results, read_sources

PER_TASK = "per-task"
MEAN_GAIN = "mean-gain"
RANK = "rank"
WORST_CASE = "worst-case"
LAST = "last"
AVERAGE = "average"
RELATIVE = (MEAN_GAIN, WORST_CASE)
"""The rules that need a reference."""
RULES = (PER_TASK, MEAN_GAIN, RANK, WORST_CASE, LAST)
"""The rules that choose among evaluated steps."""

Scores = Mapping[str, DevScores]
References = Mapping[str, float]
"""The dev score of each task in scenario (a)."""


@dataclass(frozen=True)
class Choice:
    """The choice of a rule.

    Attributes:
        rule: its name.
        steps: the chosen step of each task, the same for all but by `per-task`.
        values: the dev score of each task there.
        costs: how much worse that is than the task's own best, in the metric's unit. Only averaged
            weights may be better than all steps: then it is negative.
    """

    rule: str
    steps: Mapping[str, int]
    values: Mapping[str, float]
    costs: Mapping[str, float]

    @property
    def step(self) -> int | None:
        """The chosen step, if it is the same for all tasks."""
        steps = set(self.steps.values())
        return next(iter(steps)) if len(steps) == 1 else None


def choose(rule: str, scores: Scores, references: References | None = None) -> Choice:
    """Choose by a rule of `RULES`. Of equally good steps, the first.

    Args:
        rule: its name.
        scores: the dev scores of the run.
        references: needed by `RELATIVE`.

    Raises:
        UserError: a reference is missing, or no step has scores of all tasks.
    """
    if rule == PER_TASK:
        return _choice(rule, scores, {task: score.best_step for task, score in scores.items()})
    common = set.intersection(*(set(score.values) for score in scores.values()))
    if not common:
        raise UserError(
            "No step has dev scores of all tasks.",
            where=f"--by {rule}",
            fix="Train up to the next evaluation (runner.eval_step).",
            code="undefined-metric",
        )
    steps = sorted(common)
    if rule == LAST:
        chosen = steps[-1]
    elif rule == RANK:
        ranks = {task: _ranks(score, steps) for task, score in scores.items()}
        chosen = min(steps, key=lambda step: sum(rank[step] for rank in ranks.values()))
    else:
        gains = _gains(rule, scores, references or {}, steps)
        worth = {
            step: min(values) if rule == WORST_CASE else sum(values) / len(values)
            for step, values in gains.items()
        }
        chosen = max(steps, key=lambda step: worth[step])
    return _choice(rule, scores, dict.fromkeys(scores, chosen))


def compare(run: Path, scores: Scores, references: References) -> list[Choice]:
    """The choices of all rules of `RULES`, without `RELATIVE` if a reference is missing.

    After them the averages of checkpoints that were evaluated on dev.
    """
    known = all(task in references for task in scores)
    rules = [rule for rule in RULES if known or rule not in RELATIVE]
    return [choose(rule, scores, references) for rule in rules] + averages(run, scores)


def averages(run: Path, scores: Scores) -> list[Choice]:
    """The averages of checkpoints of a run that were evaluated on dev, by their number.

    An evaluation of `average-K.ckpt` lies in the folder `average-K` of the run.

    Args:
        run: its folder.
        scores: the dev scores of the run.
    """
    found: dict[int, Choice] = {}
    for folder in run.glob(f"{AVERAGE}-*"):
        count = folder.name.removeprefix(f"{AVERAGE}-")
        results, sources = read_results(folder), read_sources(folder)
        values, steps = {}, {}
        for task, score in scores.items():
            value = results.get(task, {}).get(score.split, {}).get(score.metric.name)
            if value is not None:
                values[task] = value
                steps[task] = sources[task][score.split]["step"]
        if count.isdigit() and len(values) == len(scores):
            found[int(count)] = _choice(f"{AVERAGE}:{count}", scores, steps, values)
    return [found[count] for count in sorted(found)]


def choice_table(
    choices: Sequence[Choice], scores: Scores, heading: Callable[[str], str] = str
) -> tuple[list[str], list[list[str]]]:
    """A column for each rule with the dev score of each task and, in parentheses, its cost.

    Args:
        choices: of the rules.
        scores: of the run.
        heading: shown names of tasks.

    Returns:
        the header and the rows; parts of a cell are separated by line breaks.
    """
    header = ["dev"]
    for choice in choices:
        of = "own steps" if choice.step is None else f"step {choice.step}"
        header.append(f"{choice.rule}\n{of}")
    rows = []
    for task, score in scores.items():
        metric = score.metric
        row = [f"{heading(task)} {metric.title}{' %' if metric.percent else ''}"]
        for choice in choices:
            value, cost = (
                metric.shown(number).removesuffix(" %")
                for number in (choice.values[task], abs(choice.costs[task]))
            )
            rises = (choice.costs[task] > 0) == (metric.better == "lower")
            difference = f"\n({'+' if rises else '-'}{cost})" if choice.costs[task] else ""
            row.append(f"{value}{difference}")
        rows.append(row)
    return header, rows


def _choice(
    rule: str, scores: Scores, steps: Mapping[str, int], values: Mapping[str, float] | None = None
) -> Choice:
    """The choice of steps, by the values of these steps if none are given."""
    if values is None:
        values = {task: score.values[steps[task]] for task, score in scores.items()}
    costs = {}
    for task, score in scores.items():
        worse = values[task] - score.best
        costs[task] = worse if score.metric.better == "lower" else 0.0 - worse
    return Choice(rule, steps, values, costs)


def _ranks(score: DevScores, steps: Sequence[int]) -> dict[int, float]:
    """The rank of each step by the score of a task, from 1; equal scores share the mean rank."""
    sign = 1 if score.metric.better == "lower" else -1
    ordered = sorted(sign * score.values[step] for step in steps)
    return {
        step: ordered.index(value) + (ordered.count(value) + 1) / 2
        for step in steps
        for value in [sign * score.values[step]]
    }


def _gains(
    rule: str, scores: Scores, references: References, steps: Sequence[int]
) -> dict[int, list[float]]:
    missing = [task for task in scores if task not in references]
    if missing:
        raise UserError(
            f"The gain over scenario (a) is unknown for {', '.join(missing)}.",
            where=f"--by {rule}",
            fix="Name the runs of their heads on the frozen encoder: --reference OUT/a/seed0.",
            code="missing-option",
        )
    return {
        step: [score.gain(score.values[step], references[task]) for task, score in scores.items()]
        for step in steps
    }


def parse_average(rule: str) -> int | None:
    """K of the rule `average:K`; None for another rule.

    Raises:
        UserError: K is not a positive number.
    """
    name, _, count = rule.partition(":")
    if name != AVERAGE:
        return None
    if not count.isdigit() or int(count) < 1:
        raise UserError(
            f"{rule!r} has no number of checkpoints.",
            where=f"--by {rule}",
            fix="For example average:5.",
            code="invalid-value",
        )
    return int(count)


def average_checkpoints(run: Path, count: int) -> tuple[RunCheckpoint, list[Path]]:
    """The newest checkpoint of a run, with the mean of the weights of the last ones.

    The mean is computed in float64. Values that are not weights (counts, best scores) and the
    decisions of experts are those of the newest.

    Args:
        run: its folder.
        count: how many.

    Returns:
        the checkpoint, without the state of its training, and the files.

    Raises:
        UserError: the run has fewer.
    """
    files = checkpoints.states_files(run)[-count:]
    if len(files) < count:
        raise UserError(
            f"{run} has {len(files)} checkpoints, not {count}.",
            where=f"--by {AVERAGE}:{count}",
            fix=f"Train with -o runner.max_keep={count} (it may be set when a run is resumed), or "
            "average fewer.",
            code="checkpoint-missing",
        )
    newest = checkpoints.load(files[-1])
    if count == 1:
        return replace(newest, training=None), files
    encoder = _Mean(newest.upstream)
    featurizer = _Mean(newest.featurizer)
    heads = {task: _Mean(entry.head) for task, entry in newest.tasks.items()}
    for path in files[:-1]:
        other = checkpoints.load(path)
        encoder.add(other.upstream)
        featurizer.add(other.featurizer)
        for task, mean in heads.items():
            mean.add(other.tasks[task].head)
    tasks = {
        task: replace(entry, head=heads[task].result()) for task, entry in newest.tasks.items()
    }
    averaged = replace(
        newest,
        upstream=encoder.result(),
        featurizer=featurizer.result(),
        tasks=tasks,
        training=None,
    )
    return averaged, files


class _Mean:
    """The mean of state dicts; entries without a floating point are those of the first."""

    def __init__(self, first: Mapping[str, object]) -> None:
        self._first = first
        self._count = 1
        self._sums = {
            name: value.double()
            for name, value in first.items()
            # Best scores may be infinite, and are of one step.
            if isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and name.rpartition(".")[2] != "best_score"
        }

    def add(self, other: Mapping[str, object]) -> None:
        self._count += 1
        for name in self._sums:
            value = other[name]
            assert isinstance(value, torch.Tensor)
            self._sums[name] = self._sums[name] + value.double()

    def result(self) -> dict[str, object]:
        means = {
            name: (total / self._count).to(self._first[name].dtype)  # type: ignore[attr-defined]
            for name, total in self._sums.items()
        }
        return {**self._first, **means}
