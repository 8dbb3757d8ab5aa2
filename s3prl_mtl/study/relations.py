"""Which task helps which: what leaving one task out does to the others.

The effect of a task on a metric is the relative change of the error from (b-1), all tasks, to
(b-2), all but this one. Positive: the error grows without the task, so that the task helps. The
error of a metric is its distance from the best possible value, so that an accuracy and the error
rate of the same system give the same number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from s3prl_mtl.study.results import Column, Results, Row, equal_means


@dataclass(frozen=True)
class Effect:
    """What leaving out a task does to a metric of another task.

    Attributes:
        helper: the task that is left out.
        column: the metric.
        value: the relative change of its error; positive if the task helps.
        spread: the standard deviation of the change between single runs, relative as well; None
            for fewer than two seeds of either scenario.
        clear: whether the effect exceeds the spread. True in a study of one seed, whose spread is
            unknown.
    """

    helper: str
    column: Column
    value: float
    spread: float | None
    clear: bool


@dataclass(frozen=True)
class Relation:
    """The effect of a task on another one, whose metrics agree in its sign.

    Attributes:
        helper: the task that is left out.
        task: the other one.
        value: the mean of the effects on its metrics, all above or all below 0.
        clear: whether all of them are clear.
    """

    helper: str
    task: str
    value: float
    clear: bool


def effects(results: Results) -> list[Effect]:
    """The effects of a study, by left-out task.

    Those on a metric with an error of 0 in (b-1) are left out: the relative change is undefined.
    """
    found = []
    for row in results.rows:
        if row.scenario != "b2" or row.left_out is None:
            continue
        for column in results.columns:
            effect = _effect(results, row, column) if column.task != row.left_out else None
            if effect is not None:
                found.append(effect)
    return found


def _effect(results: Results, row: Row, column: Column) -> Effect | None:
    before, after = results.cell(Row("b1"), column), results.cell(row, column)
    if before.mean is None or after.mean is None or row.left_out is None:
        return None
    if not column.has_direction:
        return None
    scale = column.error(before.mean)
    scale = abs(before.mean) if scale is None else scale
    if scale == 0:
        return None
    worse = (
        after.mean - before.mean if column.metric.better == "lower" else before.mean - after.mean
    )
    if equal_means(before.mean, after.mean):
        worse = 0.0
    spread = None
    if before.deviation is not None and after.deviation is not None:
        spread = math.hypot(before.deviation, after.deviation) / scale
    value = worse / scale
    one_seed = len(results.seeds) == 1
    clear = one_seed if spread is None else abs(value) > spread
    return Effect(row.left_out, column, value, spread, clear)


def relations(found: Sequence[Effect]) -> list[Relation]:
    """The relations between tasks, strongest first.

    Pairs with metrics of unlike sign, or without an effect, are left out.
    """
    pairs: dict[tuple[str, str], list[Effect]] = {}
    for effect in found:
        pairs.setdefault((effect.helper, effect.column.task), []).append(effect)
    agreed = [
        Relation(
            helper,
            task,
            statistics.fmean(effect.value for effect in group),
            all(effect.clear for effect in group),
        )
        for (helper, task), group in pairs.items()
        if all(effect.value > 0 for effect in group) or all(effect.value < 0 for effect in group)
    ]
    return sorted(agreed, key=lambda relation: -abs(relation.value))


def ranking(found: Sequence[Effect], task: str) -> list[tuple[str, float]]:
    """The auxiliary tasks of a primary one, the most helpful first.

    Returns:
        Names and the mean effects on the metrics of the primary task.
    """
    values: dict[str, list[float]] = {}
    for effect in found:
        if effect.column.task == task:
            values.setdefault(effect.helper, []).append(effect.value)
    means = {helper: statistics.fmean(group) for helper, group in values.items()}
    return sorted(means.items(), key=lambda entry: -entry[1])
