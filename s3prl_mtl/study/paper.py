"""The numbers of the paper, from `paper.json`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from s3prl_mtl.study.results import Cell, Column, Results, Row
from s3prl_mtl.tasks.metric import Metric

PACKAGE = "s3prl-mtl"
"""The package of the tasks of the paper."""


@cache
def read_paper() -> dict[str, Any]:
    """The file: source, columns, and rows in percent as printed."""
    path = Path(__file__).with_name("paper.json")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def paper_headings() -> dict[str, str]:
    """The names of the tasks in the paper's table, by their names here."""
    return {column["task"]: column["heading"] for column in read_paper()["columns"]}


def paper_titles() -> dict[tuple[str, str], str]:
    """The titles of the metrics in the paper's table, by task and name of the metric."""
    return {(c["task"], c["metric"]): c["title"] for c in read_paper()["columns"]}


def paper_results() -> Results:
    """The table of the paper; HuBERT Base, one seed."""
    paper = read_paper()
    columns = [
        Column(c["task"], Metric(c["metric"], c["better"], c["title"]), c["heading"])
        for c in paper["columns"]
    ]
    rows, cells = [], {}
    for entry in paper["rows"]:
        row = Row(entry["scenario"], entry.get("left_out"))
        rows.append(row)
        for column, percent in zip(columns, entry["values"], strict=True):
            if percent is not None:
                cells[row, column] = Cell({0: percent / 100})
    headings, conditions = paper_headings(), paper["conditions"]
    return Results(columns, rows, cells, headings=headings, conditions=conditions)


def published_values() -> dict[tuple[Row, str, str], float]:
    """The paper's values as fractions, by scenario, task and name of the metric."""
    return {
        (row, column.task, column.metric.name): cell.values[0]
        for (row, column), cell in paper_results().cells.items()
    }
