"""`report`: tables, figures and a page of a study, of a run, or of the paper's numbers."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from s3prl_mtl.api.reports import PAPER_FOLDER
from s3prl_mtl.cli.parser import call
from s3prl_mtl.tracking.console import OUTPUT

if TYPE_CHECKING:
    from s3prl_mtl.api.reports import Report
    from s3prl_mtl.study.results import Results


MISSING_LINES = 10
"""Runs without results that are printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="OUT", type=Path, nargs="?", help="the folder of a study or of a run"
    )
    parser.add_argument("--paper", action="store_true", help="report the numbers of the paper")
    parser.add_argument("--primary", metavar="TASK", help="rank the auxiliary tasks of this one")
    parser.add_argument(
        "-o",
        "--out",
        metavar="DIR",
        type=Path,
        help=f"where to write (default: OUT; with --paper, {PAPER_FOLDER})",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write report.html, tables and figures; print the table.

    Raises:
        UserError: the folder is neither that of a study nor that of a run.
    """
    from s3prl_mtl.api.reports import report
    from s3prl_mtl.tracking.results_table import results_table

    written = call(report, arguments)
    if written.results is None:
        OUTPUT.print(results_table(arguments.folder))
        _print_path(written.path)
    else:
        show_report(written, arguments.primary)


def show_report(report: Report, primary: str | None = None) -> None:
    """Print the table of a study, and the path of its page.

    Args:
        report: of a study, or of the paper's numbers.
        primary: print the auxiliary tasks of this one.
    """
    from s3prl_mtl.study.tables import legend, missing_lines, missing_runs, terminal_table

    results = report.results
    assert results is not None
    OUTPUT.print(terminal_table(results))
    for line in legend(results, means_only=True):
        OUTPUT.print(line, markup=False, highlight=False)
    if results.missing:
        OUTPUT.print(f"{missing_runs(results)}:")
        lines = missing_lines(results)
        for line in lines[:MISSING_LINES]:
            OUTPUT.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)
        if len(lines) > MISSING_LINES:
            OUTPUT.print(f"  and {len(lines) - MISSING_LINES} more (table.md)", highlight=False)
    if primary:
        _print_ranking(primary, results)
    _print_path(report.path)


def _print_ranking(task: str, results: Results) -> None:
    from s3prl_mtl.study.numbers import shown_effect
    from s3prl_mtl.study.relations import effects, ranking

    OUTPUT.print(f"\nAuxiliary tasks of {results.heading(task)}, relative change of its error, %:")
    notes = {True: ", exceeds the spread", False: ", within the spread", None: ", unknown spread"}
    for one in ranking(effects(results), task):
        verb = "helps" if one.value > 0 else "hurts" if one.value < 0 else "no effect"
        line = f"  {results.heading(one.helper):8}{shown_effect(one.value):>6}  {verb}"
        note = notes[one.clear] if one.value and len(results.seeds) > 1 else ""
        OUTPUT.print(line + note, highlight=False)


def _print_path(path: Path) -> None:
    OUTPUT.print(f"The report is {os.path.abspath(path)}", soft_wrap=True, highlight=False)
