"""`check-task`: check a task against the contract."""

from __future__ import annotations

import argparse

from rich.table import Table
from rich.text import Text

from s3prl_mtl.tracking.console import OUTPUT

CLAUSE_FAILED = 1
CLAUSE_NOT_CHECKED = 3
"""Exit codes; 2 is a mistake of the user, as in every command."""

_COLOURS = {True: "green", False: "red", None: "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="an installed task")
    parser.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")
    parser.add_argument("-c", "--config", metavar="YAML", action="append", default=[])
    parser.add_argument("-o", "--override", metavar="KEY=VALUE,,...", help="settings of the task")
    parser.add_argument(
        "--batches",
        type=int,
        metavar="N",
        help="maximum number of batches of each split, at least 1 (default: 16 of training, all of "
        "other splits)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the verdict on each clause of the contract.

    Exit with 1 if a clause fails, with 3 if none fails and some were not checked.
    """
    from s3prl_mtl.authoring import check_task

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
    failed = sum(finding.holds is False for finding in findings)
    held = sum(finding.holds is True for finding in findings)
    unchecked = sum(not finding.checked for finding in findings)
    others = len(findings) - held - failed - unchecked
    counts = f"{held} clauses hold, {failed} do not, {others} do not apply"
    if unchecked:
        counts += f", {unchecked} {'was' if unchecked == 1 else 'were'} not checked"
    OUTPUT.print(f"{arguments.name}: {counts}.")
    if failed:
        raise SystemExit(CLAUSE_FAILED)
    if unchecked:
        raise SystemExit(CLAUSE_NOT_CHECKED)
