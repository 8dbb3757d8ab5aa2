"""Read the folder of a study: its plan, and the results of its finished runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import load_task, same_package, split_name
from s3prl_mtl.study.paper import PACKAGE, paper_headings, paper_titles, published_values
from s3prl_mtl.study.plan import SCENARIOS, StudyRun
from s3prl_mtl.study.record import RunStatus, survey
from s3prl_mtl.study.results import Cell, Column, Results, Row
from s3prl_mtl.study.settings import StudySettings, read_settings
from s3prl_mtl.study.status import reason
from s3prl_mtl.tasks.metric import Metric, metrics_of
from s3prl_mtl.training.run_record import NOT_STARTED, RunRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study.

    Attributes:
        name: its folder in that of the study.
        row: of the table that its results belong to.
        seed: of the run.
        record: what it logged so far.
        problem: why it has no results that count; None if it has.
    """

    name: str
    row: Row
    seed: int
    record: RunRecord
    problem: str | None


@dataclass(frozen=True)
class StudyFolder:
    """A study that may not be finished.

    Args:
        folder: with `study.json`.
        settings: from `study.json`.
    """

    folder: Path
    settings: StudySettings

    @property
    def tasks(self) -> list[str]:
        return list(self.settings.plan.tasks)

    @property
    def seeds(self) -> list[int]:
        return list(self.settings.plan.seeds)

    @cached_property
    def runs(self) -> list[PlannedRun]:
        planned = self.settings.plan.runs
        states = survey(planned, self.folder)
        runs = []
        for run in planned:
            row = Row(run.scenario, run.left_out if run.scenario == "b2" else None, run.alpha)
            record = RunRecord(self.folder / run.name)
            problem = _problem(run, states, record)
            runs.append(PlannedRun(run.name, row, run.seed, record, problem))
        return runs

    @cached_property
    def finished(self) -> list[PlannedRun]:
        return [run for run in self.runs if run.problem is None]

    @cached_property
    def results(self) -> Results:
        """The table; cells of unfinished runs are empty."""
        headings = self._headings()
        published = self._published()
        values: dict[tuple[Row, Column], dict[int, float]] = {}
        columns: dict[Column, None] = {}
        missing = {run.name: run.problem for run in self.runs if run.problem is not None}
        for run in self.finished:
            for result in run.record.results:
                heading = headings.get(result.task, result.task)
                metric = self._titled(result.task, result.metric)
                column = Column(result.task, metric, heading, result.split)
                columns.setdefault(column)
                if result.last.value is not None:
                    values.setdefault((run.row, column), {})[run.seed] = result.last.value
                else:
                    missing[run.name] = f"{column.title} is undefined"
        found = [*columns, *self._columns_without_result({c.task for c in columns}, headings)]
        found.sort(key=self._place)
        rows = self._rows()
        cells = {}
        for row in rows:
            for column in found:
                seeds = values.get((row, column), {})
                paper = published.get((row, column.task, column.metric.name))
                if seeds or paper is not None:
                    cells[row, column] = Cell(seeds, paper)
        conditions = self._conditions()
        return Results(found, rows, cells, self.seeds, headings, conditions, missing)

    def _place(self, column: Column) -> int:
        return self.tasks.index(column.task) if column.task in self.tasks else len(self.tasks)

    def _rows(self) -> list[Row]:
        order = list(SCENARIOS)

        def place(row: Row) -> tuple[int, int, float]:
            task = self.tasks.index(row.left_out) if row.left_out in self.tasks else 0
            return order.index(row.scenario), task, row.alpha or 0.0

        return sorted({run.row for run in self.runs}, key=place)

    def _is_ours(self, task: str) -> bool:
        """Whether a task is one of the paper's, and not another package's of the same name."""
        for run in self.runs:
            package = run.record.block(task).get("package")
            if package is not None:
                return same_package(package, PACKAGE) and task in paper_headings()
        return task in paper_headings()

    def _headings(self) -> dict[str, str]:
        ours = paper_headings()
        return {
            task: ours[task] if self._is_ours(task) else split_name(task)[1] for task in self.tasks
        }

    def _titled(self, task: str, metric: Metric) -> Metric:
        """A metric with the shorter title that it has in the paper, if it is there."""
        titles = paper_titles() if self._is_ours(task) else {}
        return replace(metric, title=titles.get((task, metric.name), metric.title))

    def _published(self) -> dict[tuple[Row, str, str], float]:
        """The paper's numbers for the scenarios that are the same here.

        (a) has no other tasks; the other scenarios need the nine tasks of the paper, no others.
        """
        ours = {task for task in self.tasks if self._is_ours(task)}
        same = ours == set(self.tasks) == set(paper_headings())
        return {
            key: value
            for key, value in published_values().items()
            if key[1] in ours and (same or key[0].scenario == "a")
        }

    def _columns_without_result(self, known: set[str], headings: Mapping[str, str]) -> list[Column]:
        """Empty columns for the tasks that no finished run has."""
        columns = []
        for task in self.tasks:
            if task not in known:
                try:
                    metrics = metrics_of(load_task(task))
                except UserError as problem:  # the package may have been uninstalled
                    logger.warning("%s", problem)
                    continue
                shown = [m for m in metrics if m.headline and not m.optional] or metrics[:1]
                if metrics and metrics[0] not in shown:
                    shown = [metrics[0], *shown]
                columns += [
                    Column(task, self._titled(task, metric), headings[task]) for metric in shown
                ]
        return columns

    def _conditions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for run in self.finished:
            for task in run.record.tasks:
                if task not in found:
                    found[task] = run.record.conditions(task)
        return {task: found[task] for task in self.tasks if found.get(task)}


def _problem(run: StudyRun, states: Mapping[str, RunStatus], record: RunRecord) -> str | None:
    state = states[run.name]
    if state.status == "done":
        return record.problem
    why = reason(run, states) or record.problem
    return state.status if why in (None, NOT_STARTED) else f"{state.status} ({why})"


def read_study(folder: Path) -> StudyFolder:
    """Read the folder of a study.

    Raises:
        UserError: `study.json` is missing or damaged.
    """
    settings = read_settings(folder)
    if settings is None:
        raise UserError(
            f"{folder} is neither the folder of a study nor that of a run.",
            where=str(folder),
            fix="Give a folder with study.json or with metrics.jsonl.",
            code="file-missing",
        )
    return StudyFolder(folder, settings)
