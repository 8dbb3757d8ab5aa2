"""The tables of results name the weights that the numbers are of."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from s3prl_mtl.cli.main import main
from s3prl_mtl.tracking.recorder import Recorder, Report, read_results, read_sources
from s3prl_mtl.tracking.results_table import comparison_table, results_table


def evaluate(folder: Path, task: str, value: float, step: int, checkpoint: str | None = None):
    folder.mkdir(exist_ok=True)
    with Recorder(folder) as recorder:
        report = Report(task, "test", [("acc", value, step)], checkpoint=checkpoint)
        recorder.write(report)
        recorder.keep(report)


def headings(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


def cells(table: Table) -> list[list[str]]:
    columns = [list(map(str, column.cells)) for column in table.columns]
    return list(map(list, zip(*columns, strict=True)))


def test_the_headings_name_the_steps(tmp_path: Path):
    evaluate(tmp_path, "ks", 0.1, 0)
    evaluate(tmp_path, "ks", 0.9, 5)
    table = results_table(tmp_path)
    assert headings(table) == ["task", "split", "metric", "step 0", "step 5"]
    assert cells(table) == [["ks", "test", "accuracy ↑", "10.00 %", "90.00 %"]]


def test_columns_that_would_be_empty_are_left_out(tmp_path: Path):
    evaluate(tmp_path, "ks", 0.9, 5)
    assert headings(results_table(tmp_path)) == ["task", "split", "metric", "step 5"]


def test_numbers_of_several_checkpoints_are_shown_with_them(tmp_path: Path):
    evaluate(tmp_path, "ks", 0.9, 5, "ks/dev-best.ckpt")
    evaluate(tmp_path, "er", 0.5, 7, "states-7.ckpt")
    table = results_table(tmp_path)
    assert headings(table)[3:] == ["result", "of"]
    assert [row[4] for row in cells(table)] == ["dev-best, step 5", "states-7"]


def test_only_the_evaluated_splits_are_shown_after_an_evaluation(tmp_path: Path):
    evaluate(tmp_path, "ks", 0.1, 0)
    evaluate(tmp_path, "er", 0.4, 0)
    evaluate(tmp_path, "ks", 0.9, 5, "states-5.ckpt")
    table = results_table(tmp_path, splits=[("ks", "test")])
    assert headings(table)[3:] == ["states-5"] and len(cells(table)) == 1


def test_the_results_file_states_step_and_checkpoint(tmp_path: Path):
    evaluate(tmp_path, "ks", 0.9, 5, "ks/dev-best.ckpt")
    evaluate(tmp_path, "er", 0.5, 7)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["ks"] == {"test": {"acc": 0.9}}
    assert written["_source"]["ks"]["test"] == {"step": 5, "checkpoint": "ks/dev-best.ckpt"}
    assert read_results(tmp_path) == {"ks": {"test": {"acc": 0.9}}, "er": {"test": {"acc": 0.5}}}
    assert read_sources(tmp_path)["er"] == {"test": {"step": 7, "checkpoint": None}}


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Path]:
    evaluate(tmp_path / "a", "ks", 0.9, 5)
    evaluate(tmp_path / "b", "ks", 0.8, 5, "ks/dev-best.ckpt")
    evaluate(tmp_path / "b", "er", 0.5, 7)
    return [tmp_path / "a", tmp_path / "b"]


def test_runs_are_compared_side_by_side(two_runs: list[Path]):
    table = comparison_table(two_runs)
    assert headings(table) == ["task", "split", "metric", "a\nstep 5", "b"]
    assert cells(table) == [
        ["ks", "test", "accuracy ↑", "90.00 %", "80.00 % (dev-best, step 5)"],
        ["er", "test", "accuracy ↑", "", "50.00 % (step 7)"],
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_a_table_fits_its_terminal_without_losing_a_cell(width: int, two_runs: list[Path]):
    for table in (comparison_table(two_runs), results_table(two_runs[1])):
        console = Console(width=width, file=io.StringIO())
        console.print(table)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, shown.splitlines())) <= width
        assert "…" not in shown and "80.00 %" in shown


def test_runs_are_compared_as_csv_and_json(two_runs: list[Path], capsys):
    words = ["results", *map(str, two_runs)]
    assert main([*words, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert main([*words, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(r["run"], r["task"], r["value"]) for r in records] == [
        (str(two_runs[0]), "ks", 0.9),
        (str(two_runs[1]), "ks", 0.8),
        (str(two_runs[1]), "er", 0.5),
    ]
    assert [float(row["value"]) for row in rows] == [0.9, 0.8, 0.5]
    assert rows[1]["checkpoint"] == "ks/dev-best.ckpt" and rows[0]["checkpoint"] == ""
