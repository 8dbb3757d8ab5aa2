"""`select`: which checkpoint of a run each rule would choose, and what that costs each task."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_mtl.cli.parser import call
from s3prl_mtl.tracking.console import OUTPUT

if TYPE_CHECKING:
    from rich.table import Table

    from s3prl_mtl.study.dev_scores import DevScores
    from s3prl_mtl.study.selection import Choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    parser.add_argument(
        "--by",
        metavar="RULE",
        help="per-task, mean-gain, rank, worst-case, last, or average:K, which writes a "
        "checkpoint (default: compare the rules)",
    )
    parser.add_argument(
        "--reference",
        metavar="RUN",
        type=Path,
        action="append",
        help="runs of single heads on the frozen encoder, or their folder; for a run of a study, "
        "those of its scenario a by default",
    )
    parser.add_argument(
        "--out",
        metavar="CKPT",
        type=Path,
        help="output of average:K (default RUN/average-K.ckpt)",
    )
    parser.add_argument("--json", action="store_true", help="a list of objects, fractions")


def run(arguments: argparse.Namespace) -> None:
    """Show what the rules choose; with `--by`, how to evaluate the choice on test.

    Raises:
        UserError: the run has no dev scores, a rule or a reference is missing.
    """
    from s3prl_mtl.api.reports import select
    from s3prl_mtl.study.selection import RULES

    found = call(select, arguments)
    if found.checkpoint is not None:
        names = ", ".join(file.name for file in found.averaged)
        evaluate = f"s3prl-mtl evaluate -e {found.checkpoint} -p {found.checkpoint.with_suffix('')}"
        lines = [f"Wrote {found.checkpoint}, the mean of {names}.", f"On test: {evaluate}"]
        splits = ",".join(f"{task}:{score.split}" for task, score in found.scores.items())
        if splits and found.checkpoint.parent == arguments.run:
            lines.append(f"On dev, to compare it with the others: {evaluate} -t {splits}")
        _print_lines(*lines)
        return
    if arguments.json:
        print(json.dumps([_record(choice) for choice in found.choices], indent=2))
        return
    OUTPUT.print(choices_table(found.choices, found.scores))
    made = {choice.rule for choice in found.choices}
    left_out = [rule for rule in RULES if not arguments.by and rule not in made]
    if left_out:
        OUTPUT.print(f"Without --reference: no {' and no '.join(left_out)}.", highlight=False)
    if arguments.by:
        _print_lines(*_how_to_evaluate(arguments.run, found.choices[0]))


def _print_lines(*lines: str) -> None:
    for line in lines:
        OUTPUT.print(line, soft_wrap=True, markup=False, highlight=False)


def choices_table(choices: Sequence[Choice], scores: Mapping[str, DevScores]) -> Table:
    """The dev score of each task by each rule, with the cost against its own best below."""
    from rich.table import Table

    from s3prl_mtl.study.selection import choice_table

    (first, *others), rows = choice_table(choices, scores)
    table = Table(padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _record(choice: Choice) -> dict[str, Any]:
    return {
        "rule": choice.rule,
        "steps": dict(choice.steps),
        "dev": dict(choice.values),
        "cost": dict(choice.costs),
    }


def _how_to_evaluate(run: Path, choice: Choice) -> list[str]:
    """The command that evaluates a choice on test."""
    step = choice.step
    if step is None or choice.rule == "per-task":
        return [f"On test: s3prl-mtl evaluate -e {run} --best"]
    file = run / f"states-{step}.ckpt"
    if not file.is_file():
        return [
            f"The run has no {file.name} any more. Train with -o runner.max_keep=N to keep the "
            "last N checkpoints."
        ]
    return [f"On test: s3prl-mtl evaluate -e {file} -p {run / choice.rule}"]
