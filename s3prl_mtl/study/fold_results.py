"""Results of cross-validation: a run for each fold, and their mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.tasks.metric import Metric
from s3prl_mtl.training.run_record import RunRecord


@dataclass(frozen=True)
class FoldResult:
    """A metric over the folds.

    Attributes:
        task, split, metric: what was evaluated.
        values: by fold, those that are finite; fractions.
    """

    task: str
    split: str
    metric: Metric
    values: Mapping[str, float]


def fold_results(folders: Mapping[str, Path]) -> list[FoldResult]:
    """The headline metrics of the finished runs.

    Args:
        folders: of the runs, by fold.
    """
    values: dict[tuple[str, str, Metric], dict[str, float]] = {}
    for fold, folder in folders.items():
        record = RunRecord(folder)
        for result in record.results if record.problem is None else ():
            if result.last.value is not None:
                key = (result.task, result.split, result.metric)
                values.setdefault(key, {})[fold] = result.last.value
    return [FoldResult(*key, found) for key, found in values.items()]


def _rows(folders: Mapping[str, Path]) -> tuple[list[str], list[list[str]]]:
    header = ["task", "split", "metric", *folders, "mean", "standard deviation"]
    rows = []
    for result in fold_results(folders):
        shown, values = result.metric.shown, list(result.values.values())
        cells = [shown(result.values[fold]) if fold in result.values else "" for fold in folders]
        # A mean over some of the folds is another quantity.
        complete = len(values) == len(folders)
        mean = shown(statistics.fmean(values)) if complete else ""
        deviation = shown(statistics.stdev(values)) if complete and len(values) > 1 else ""
        rows.append([result.task, result.split, result.metric.title, *cells, mean, deviation])
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
    header, rows = _rows(folders)
    lines = [header, ["---"] * len(header), *rows]
    path = out / "table.md"
    replace_text(path, "".join("| " + " | ".join(line) + " |\n" for line in lines))
    return path
