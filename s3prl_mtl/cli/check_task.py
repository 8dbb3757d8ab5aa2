"""`check-task`: check a task against the contract."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from s3prl_mtl.cli.parser import add_data_roots
from s3prl_mtl.tracking.console import MESSAGES, OUTPUT

if TYPE_CHECKING:
    from s3prl_mtl.authoring import Finding

CLAUSE_FAILED = 1
CLAUSE_NOT_CHECKED = 3
"""Exit codes; 2 is a mistake of the user, as in every command."""

_COLOURS = {
    "holds": "green",
    "warning": "yellow",
    "does not hold": "red",
    "not applicable": "dim",
    "not checked": "dim",
}
_INDENT = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="an installed task")
    add_data_roots(parser)
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
    """Print the result of each clause of the contract as soon as it is checked.

    Exit with 1 if a clause fails, with 3 if none fails and some were not checked.
    """
    from s3prl_mtl.authoring import CONTRACT, findings_of_task

    findings: list[Finding] = []
    with MESSAGES.status("Reading the corpus") as status:
        for finding in findings_of_task(
            arguments.name,
            data=arguments.data,
            config=arguments.config,
            overrides=arguments.override,
            batches=arguments.batches,
        ):
            findings.append(finding)
            status.stop()
            _show(finding)
            if len(findings) < len(CONTRACT):
                clause = CONTRACT[len(findings)]
                status.update(f"Checking {clause.number} of {len(CONTRACT)}: {clause.title}")
                status.start()
    failed = sum(finding.holds is False for finding in findings)
    held = sum(finding.holds is True for finding in findings)
    doubtful = sum(finding.doubtful for finding in findings)
    unchecked = sum(not finding.checked for finding in findings)
    others = len(findings) - held - failed - unchecked
    counts = f"{held} clauses hold, {failed} do not, {others} do not apply"
    if unchecked:
        counts += f", {unchecked} {'was' if unchecked == 1 else 'were'} not checked"
    if doubtful:
        counts += f"; {doubtful} {'warning' if doubtful == 1 else 'warnings'}"
    OUTPUT.print(f"{arguments.name}: {counts}.")
    if failed:
        raise SystemExit(CLAUSE_FAILED)
    if unchecked:
        raise SystemExit(CLAUSE_NOT_CHECKED)


def _show(finding: Finding) -> None:
    """Print a finding: what holds on one line, anything else with the text of the clause."""
    clause, result = finding.clause, finding.result
    head = Text(result.ljust(14), style=f"bold {_COLOURS[result]}")
    head.append(f" {clause.number:2}. {clause.title}: ", style="not bold default")
    if result in ("warning", "does not hold"):
        OUTPUT.print(head.append(finding.why))
        OUTPUT.print(Padding(Text(f"Clause: {clause.text}", style="dim"), (0, 0, 0, _INDENT)))
    else:
        OUTPUT.print(head.append(finding.why), no_wrap=True, overflow="ellipsis")
