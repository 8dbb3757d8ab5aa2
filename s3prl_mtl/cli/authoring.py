"""The commands `new-task` and `check-task`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.table import Table
from rich.text import Text

from s3prl_mtl.authoring.conformance import check_task
from s3prl_mtl.authoring.new_task import new_task, words_of
from s3prl_mtl.tracking.console import OUTPUT

_COLOURS = {True: "green", False: "red", None: "dim"}

LINE_DOES_NOT_HOLD = 1
LINE_NOT_CHECKED = 3
"""Exit codes of `check-task`; 2 is a mistake of the user, as everywhere."""


def add_new_task_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the word after -d")
    parser.add_argument("directory", metavar="DIR", type=Path, help="where the package is written")


def write_new_task(arguments: argparse.Namespace) -> None:
    """`new-task`: write a package, and say how to go on."""
    name, directory = arguments.name, arguments.directory
    for path in new_task(name, directory):
        OUTPUT.print(str(path), markup=False, highlight=False, soft_wrap=True)
    steps = (
        f"pip install -e {shlex.quote(str(directory))}",
        "python -m s3prl_mtl make-corpus corpora --size tiny",
        f"python -m s3prl_mtl check-task {name} --data corpora",
        f'python run_mtl.py -u hubert_tiny -d {name} --data corpora --steps 20 -o "scheduler=null"',
    )
    module = words_of(name)["module"]
    OUTPUT.print(f"Next (then make {module}/corpus.py your own):", markup=False)
    for step in steps:
        OUTPUT.print(f"  {step}", markup=False, highlight=False, soft_wrap=True)


def add_check_task_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="an installed task")
    parser.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")
    parser.add_argument("-c", "--config", metavar="YAML", action="append", default=[])
    parser.add_argument("-o", "--override", metavar="KEY=VALUE,,...", help="settings of the task")
    parser.add_argument(
        "--batches",
        type=int,
        metavar="N",
        help="read at most so many batches of each split, 1 or more (default: 16 of training, all "
        "others)",
    )


def check(arguments: argparse.Namespace) -> None:
    """`check-task`: every line of the contract, and whether it holds.

    Exits with 1 if a line does not hold, with 3 if all that were checked hold and others were not.
    """
    findings = check_task(
        arguments.name,
        data=arguments.data,
        config=arguments.config,
        overrides=arguments.override,
        batches=arguments.batches,
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    for finding in findings:
        verdict = Text(finding.verdict, style=_COLOURS[finding.holds])
        table.add_row(verdict, f"{finding.clause.number}.", Text(finding.clause.text))
        table.add_row("", "", Text(finding.why, style="italic"))
    OUTPUT.print(table)
    failed = [finding for finding in findings if finding.holds is False]
    held = sum(finding.holds is True for finding in findings)
    unchecked = sum(not finding.checked for finding in findings)
    others = len(findings) - held - len(failed) - unchecked
    counts = f"{held} lines hold, {len(failed)} do not, {others} do not apply"
    if unchecked:
        counts += f", {unchecked} {'was' if unchecked == 1 else 'were'} not checked"
    OUTPUT.print(f"{arguments.name}: {counts}.")
    if failed:
        raise SystemExit(LINE_DOES_NOT_HOLD)
    if unchecked:
        raise SystemExit(LINE_NOT_CHECKED)
