"""Results by scenario and metric: the data behind the table, the relations and the figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from s3prl_mtl.tasks.metric import Metric

NAMES = {"a": "(a)", "b1": "(b-1)", "b2": "(b-2)", "c": "(c)", "d": "(d)"}
"""Names of the scenarios in tables."""


@dataclass(frozen=True)
class Column:
    """A metric of a task.

    Attributes:
        task: its name.
        metric: with the direction that is better.
        heading: the name of the task in tables.
        split: evaluated; "" if unknown.
    """

    task: str
    metric: Metric
    heading: str
    split: str = ""

    @property
    def title(self) -> str:
        return f"{self.heading} {self.metric.title}"

    @property
    def has_direction(self) -> bool:
        """Whether it is known which values are better: not for metrics that no expert declares."""
        return self.metric.better in ("lower", "higher")

    def error(self, value: float) -> float | None:
        """The distance from the best possible value: an accuracy of 0.9 has the error 0.1.

        None if there is no best possible value.
        """
        if self.metric.better == "lower":
            return value - self.metric.range[0] if math.isfinite(self.metric.range[0]) else None
        return self.metric.range[1] - value if math.isfinite(self.metric.range[1]) else None


@dataclass(frozen=True)
class Row:
    """A scenario; for (b-2) with the task that is left out, for (d) with the weight alpha."""

    scenario: str
    left_out: str | None = None
    alpha: float | None = None


@dataclass(frozen=True)
class Cell:
    """The values of a metric in a scenario.

    Attributes:
        values: by seed; fractions.
        published: the paper's value.
    """

    values: Mapping[int, float] = field(default_factory=dict)
    published: float | None = None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of a sample; None for fewer than two seeds."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


def equal_means(first: float, second: float) -> bool:
    """Whether two means differ by no more than the rounding of their sums."""
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)


@dataclass(frozen=True)
class Results:
    """The table of a study.

    Attributes:
        columns: in the order of the tasks.
        rows: in the order of the scenarios.
        cells: those with a value.
        seeds: of the study.
        headings: names of the tasks in tables.
        conditions: what the numbers of a task depend on, by task.
        missing: runs without a result, with the reason.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    cells: Mapping[tuple[Row, Column], Cell]
    seeds: Sequence[int] = (0,)
    headings: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def cell(self, row: Row, column: Column) -> Cell:
        """A cell; an empty one if nothing was measured."""
        return self.cells.get((row, column), Cell())

    def mark(self, row: Row, column: Column) -> str | None:
        """`better` or `worse` than (b-1), by the means; None if equal or not comparable."""
        value, all_tasks = self.cell(row, column).mean, self.cell(Row("b1"), column).mean
        if value is None or all_tasks is None or not column.has_direction:
            return None
        if equal_means(value, all_tasks):
            return None
        return "better" if column.metric.improves(value, all_tasks) else "worse"

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(column.task for column in self.columns))

    def heading(self, task: str) -> str:
        return self.headings.get(task, task)

    def label(self, row: Row) -> str:
        """The row in tables: `(b-2) all but ASR`."""
        label = NAMES[row.scenario]
        if row.scenario == "b1":
            label += " all tasks"
        if row.left_out is not None:
            label += f" all but {self.heading(row.left_out)}"
        if row.alpha is not None:
            label += f" α = {row.alpha:g}"
        return label
