"""`report`: tables, figures and a page of a study, of a run, or of the paper's numbers."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.tracking.console import OUTPUT

if TYPE_CHECKING:
    from s3prl_mtl.study.results import Results


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
        help="where to write (default: OUT; with --paper, the folder paper)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write report.html, tables and figures; print the table.

    Raises:
        UserError: the folder is neither that of a study nor that of a run.
    """
    folder = arguments.folder
    if (folder is None) != arguments.paper:
        raise UserError(
            "Give the folder of a study or a run, or --paper, and not both.",
            where="OUT",
            fix="For example s3prl-mtl report OUT.",
            code="missing-option" if folder is None else "conflicting-options",
        )
    if folder is not None and not (folder / "study.json").is_file():
        _report_run(arguments)
        return
    write_report(folder, arguments.out or folder or Path("paper"), arguments.primary)


def write_report(folder: Path | None, out: Path, primary: str | None = None) -> None:
    """Write the report of a study, or of the paper's numbers, and print the table.

    Args:
        folder: of the study; None for the paper's numbers.
        out: where to write.
        primary: print the auxiliary tasks of this one.

    Raises:
        UserError: the folder is not that of a study, or it does not have the primary task.
    """
    from s3prl_mtl.study.paper import paper_results
    from s3prl_mtl.study.reports import paper_report, study_report
    from s3prl_mtl.study.study_results import read_study
    from s3prl_mtl.study.tables import missing_lines, missing_runs, terminal_table

    study = None if folder is None else read_study(folder)
    results = paper_results() if study is None else study.results
    if primary and primary not in results.tasks:
        raise UserError(
            f"There is no task {primary!r}.",
            where=f"--primary {primary}",
            fix=nearest(primary, results.tasks),
            code="unknown-name",
        )
    report = paper_report() if study is None else study_report(study)
    path = report.write(out)
    OUTPUT.print(terminal_table(results))
    if results.missing:
        OUTPUT.print(f"{missing_runs(results)}:")
        for line in missing_lines(results):
            OUTPUT.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)
    if primary:
        _print_ranking(primary, results)
    _print_path(path)


def _report_run(arguments: argparse.Namespace) -> None:
    from s3prl_mtl.study.reports import run_report
    from s3prl_mtl.study.study_results import read_study
    from s3prl_mtl.tracking.results_table import results_table

    if not (arguments.folder / "metrics.jsonl").is_file():
        read_study(arguments.folder)  # the error that names both
    if arguments.primary:
        raise UserError(
            "A single run does not show which task helps which.",
            where="--primary",
            fix="Give the folder of a study.",
            code="conflicting-options",
        )
    path = run_report(arguments.folder).write(arguments.out or arguments.folder)
    OUTPUT.print(results_table(arguments.folder))
    _print_path(path)


def _print_ranking(task: str, results: Results) -> None:
    from s3prl_mtl.study.numbers import shown_effect
    from s3prl_mtl.study.relations import effects, ranking

    OUTPUT.print(f"\nAuxiliary tasks of {results.heading(task)}, relative change of its error, %:")
    for helper, value in ranking(effects(results), task):
        verb = "helps" if value > 0 else "hurts" if value < 0 else "no effect"
        line = f"  {results.heading(helper):8}{shown_effect(value):>6}  {verb}"
        OUTPUT.print(line, highlight=False)


def _print_path(path: Path) -> None:
    OUTPUT.print(f"The report is {os.path.abspath(path)}", soft_wrap=True, highlight=False)
