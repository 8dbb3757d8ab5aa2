"""Results of cross-validation: a run for each fold, and their mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.fileio.text_tables import markdown_table
from s3prl_mtl.tasks.metric import Metric
from s3prl_mtl.training.run_record import RunRecord


@dataclass(frozen=True)
class FoldResult:
    """A metric over the folds.

    Attributes:
        task, split, metric: what was evaluated.
        values: by fold, None where it is missing or not finite; fractions.
    """

    task: str
    split: str
    metric: Metric
    values: Mapping[str, float | None]

    @property
    def mean(self) -> float | None:
        """The mean; None where folds are missing, since a partial mean is another quantity."""
        found = self._complete()
        return statistics.fmean(found) if found else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the sample; None for one fold, or where folds are missing."""
        found = self._complete()
        return statistics.stdev(found) if len(found) > 1 else None

    def _complete(self) -> list[float]:
        found = [value for value in self.values.values() if value is not None]
        return found if len(found) == len(self.values) else []


def fold_results(folders: Mapping[str, Path]) -> list[FoldResult]:
    """The headline metrics of the finished runs.

    Args:
        folders: of the runs, by fold.
    """
    values: dict[tuple[str, str, Metric], dict[str, float | None]] = {}
    for fold, folder in folders.items():
        record = RunRecord(folder)
        for result in record.results if record.problem is None else ():
            if result.last.value is not None:
                key = (result.task, result.split, result.metric)
                values.setdefault(key, dict.fromkeys(folders))[fold] = result.last.value
    return [FoldResult(*key, found) for key, found in values.items()]


def _rows(folders: Mapping[str, Path]) -> tuple[list[str], list[list[str]]]:
    header = ["task", "split", "metric", *folders, "mean", "std"]
    rows = []
    for result in fold_results(folders):
        numbers = [*result.values.values(), result.mean, result.deviation]
        cells = ["" if number is None else result.metric.shown(number) for number in numbers]
        rows.append([result.task, result.split, result.metric.title, *cells])
    return header, rows


def fold_table(folders: Mapping[str, Path]) -> Table:
    """A row for each metric; without a mean where folds are missing."""
    header, rows = _rows(folders)
    table = Table(padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < 3 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def write_fold_results(out: Path, folders: Mapping[str, Path]) -> Path:
    """Write the table as `table.md`, and return its path."""
    path = out / "table.md"
    replace_text(path, markdown_table(*_rows(folders)) + "\n")
    return path
