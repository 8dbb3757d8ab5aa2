"""`affinity`: how a step on one task of a run changes the losses of the others."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from s3prl_mtl.cli.parser import call
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.training.signals import exit_on_signals

if TYPE_CHECKING:
    from rich.table import Table

    from s3prl_mtl.api.reports import MeasuredAffinity

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="a run's folder, or one of its states-*.ckpt files"
    )
    parser.add_argument("--steps", type=int, default=10, help="batches of each task (%(default)s)")
    parser.add_argument("--lr", type=float, help="learning rate (default: optimizer.lr of the run)")
    parser.add_argument(
        "--groups", type=int, metavar="N", help="also divide the tasks into N groups"
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the corpora, if it has moved")
    parser.add_argument("--cache_dir", metavar="DIR", help="downloads and scanned corpora")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of affinity.csv and affinity.png (RUN)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="comma-separated values, fractions")
    form.add_argument("--json", action="store_true", help="a list of objects, fractions")


def run(arguments: argparse.Namespace) -> None:
    """Print the affinities, and write `affinity.csv` and `affinity.png`.

    Raises:
        UserError: there is no such run, it has one task, or a corpus is not usable.
    """
    from s3prl_mtl.api.reports import affinity

    with exit_on_signals():
        found = call(affinity, arguments)
    if arguments.json:
        print(json.dumps(found.records(), indent=2, allow_nan=False))
    elif arguments.csv:
        sys.stdout.write(found.csv())
    else:
        OUTPUT.print(_table(found))
    if found.groups is not None:
        groups = " | ".join(",".join(group) for group in found.groups)
        text = f"Best division into {len(found.groups)} groups: {groups}"
        if arguments.json or arguments.csv:
            logger.info("%s", text)
        else:
            OUTPUT.print(text, soft_wrap=True, markup=False, highlight=False)


def _table(found: MeasuredAffinity) -> Table:
    """The relative decrease of the loss of each column after a step on the task of each row."""
    from rich.table import Table

    from s3prl_mtl.api.reports import shown_affinity

    scaled, unit = found.scaled()
    name = found.checkpoint.name
    title = f"Affinity in {unit}: a step on the row, the loss of the column ({name})"
    table = Table(title=title, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("step on")
    for task in found.affinity.tasks:
        table.add_column(task, justify="right", overflow="fold")
    for task, row in zip(found.affinity.tasks, scaled, strict=True):
        table.add_row(task, *map(shown_affinity, row))
    return table
