"""The commands `new-task` and `check-task`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table
from rich.text import Text

from s3prl_mtl.authoring.conformance import check_task
from s3prl_mtl.authoring.new_task import new_task, words_of
from s3prl_mtl.console import OUTPUT

_COLOURS = {True: "green", False: "red", None: "dim"}


def add_new_task_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the word after -d")
    parser.add_argument("directory", metavar="DIR", type=Path, help="where the package is written")


def write_new_task(arguments: argparse.Namespace) -> None:
    """`new-task`: write a package, and say how to go on."""
    name, directory = arguments.name, arguments.directory
    for path in new_task(name, directory):
        OUTPUT.print(str(path), markup=False, highlight=False, soft_wrap=True)
    steps = (
        f"pip install -e {directory}",
        "python -m s3prl_mtl make-corpus corpora --size tiny",
        f"python -m s3prl_mtl check-task {name} --data corpora",
        f"python run_mtl.py -u hubert_tiny -d {name} --data corpora --steps 20",
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
        help="read at most so many batches of each split (default: 16 of training, all others)",
    )


def check(arguments: argparse.Namespace) -> None:
    """`check-task`: every line of the contract, and whether it holds. Exits with 1 if one fails."""
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
    skipped = sum(finding.holds is None for finding in findings)
    OUTPUT.print(
        f"{arguments.name}: {len(findings) - len(failed) - skipped} lines hold, {len(failed)} do "
        f"not, {skipped} do not apply."
    )
    if failed:
        raise SystemExit(1)
