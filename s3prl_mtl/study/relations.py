"""Relations between tasks: the effect of leaving one task out on the others.

The effect of a task on a metric is the relative change of the error from (b-1), all tasks, to
(b-2), all but this one. Positive: the error grows without the task, so that the task helps. The
error of a metric is its distance from the best possible value, so that an accuracy and the error
rate of the same system give the same number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from s3prl_mtl.study.results import Column, Results, Row, equal_means


@dataclass(frozen=True)
class Effect:
    """The effect of leaving out a task on a metric of another task.

    Attributes:
        helper: the task that is left out.
        column: the metric.
        value: the relative change of its error; positive if the task helps.
        spread: the standard deviation of the change between single runs, relative as well; None
            for fewer than two seeds of either scenario.
        seeds: the number of seeds, of the scenario with fewer.
    """

    helper: str
    column: Column
    value: float
    spread: float | None
    seeds: int

    @property
    def clear(self) -> bool | None:
        """Whether the effect exceeds the spread; None if that is unknown."""
        return None if self.spread is None else abs(self.value) > self.spread


@dataclass(frozen=True)
class Relation:
    """The effect of a task on another one, whose metrics agree in its sign.

    Attributes:
        helper: the task that is left out.
        task: the other one.
        value: the mean of the effects on its metrics; in `relations`, all above or all below 0.
        clear: whether all of them exceed the spread; None if that is unknown.
    """

    helper: str
    task: str
    value: float
    clear: bool | None


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
    seeds = min(len(before.values), len(after.values))
    return Effect(row.left_out, column, worse / scale, spread, seeds)


def chance(seeds: int) -> float:
    """The probability that an effect of zero exceeds the spread of some seeds.

    For normal noise of equal size in both scenarios: the effect over the spread, times the root of
    the number of seeds, has Student's t distribution with `2 * seeds - 2` degrees of freedom.

    Args:
        seeds: at least two.
    """
    from scipy.special import stdtr  # slow to import

    return 2 * float(stdtr(2 * seeds - 2, -math.sqrt(seeds)))


def expected_by_chance(found: Sequence[Effect]) -> float:
    """The expected number of effects above the spread if no task had an effect."""
    return sum(chance(effect.seeds) for effect in found if effect.spread is not None)


def relations(found: Sequence[Effect]) -> list[Relation]:
    """The relations between tasks, strongest first.

    Pairs with metrics of unlike sign, or without an effect, are left out.
    """
    agreed = [
        _relation(group)
        for group in _by_pair(found)
        if all(effect.value > 0 for effect in group) or all(effect.value < 0 for effect in group)
    ]
    return sorted(agreed, key=lambda relation: -abs(relation.value))


def ranking(found: Sequence[Effect], task: str) -> list[Relation]:
    """The auxiliary tasks of a primary one, the most helpful first.

    Metrics of the primary task may disagree in the sign of an effect, which then is not clear.
    """
    ranked = [_relation(group) for group in _by_pair(found) if group[0].column.task == task]
    return sorted(ranked, key=lambda relation: -relation.value)


def _by_pair(found: Sequence[Effect]) -> Iterable[list[Effect]]:
    """The effects of each task on each other one."""
    pairs: dict[tuple[str, str], list[Effect]] = {}
    for effect in found:
        pairs.setdefault((effect.helper, effect.column.task), []).append(effect)
    return pairs.values()


def _relation(group: Sequence[Effect]) -> Relation:
    signs = {effect.value > 0 for effect in group}
    clear: bool | None = len(signs) == 1 and all(effect.clear is not False for effect in group)
    if clear and any(effect.clear is None for effect in group):
        clear = None
    value = statistics.fmean(effect.value for effect in group)
    return Relation(group[0].helper, group[0].column.task, value, clear)
