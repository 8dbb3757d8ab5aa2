"""`affinity`: how a step on one task of a run changes the losses of the others."""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_mtl.errors import UserError
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.training.signals import exit_on_signals

if TYPE_CHECKING:
    from rich.table import Table

    from s3prl_mtl.training.affinity import Affinity

logger = logging.getLogger(__name__)

FIELDS = ["checkpoint", "step_on", "loss_of", "affinity", "standard_error"]


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
        "-o", "--out", type=Path, metavar="DIR", help="for affinity.csv and affinity.png (RUN)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="comma-separated values, fractions")
    form.add_argument("--json", action="store_true", help="a list of objects, fractions")


def run(arguments: argparse.Namespace) -> None:
    """Print the affinities, and write `affinity.csv` and `affinity.png`.

    Raises:
        UserError: there is no such run, it has one task, or a corpus is not usable.
    """
    from s3prl_mtl.checkpoint import files as checkpoints
    from s3prl_mtl.checkpoint.compatibility import check_evaluate
    from s3prl_mtl.config import build_config
    from s3prl_mtl.training.affinity import measure_affinity, open_run

    _check_positive("--steps", arguments.steps)
    saved, path = checkpoints.load_newest(arguments.run, flag="RUN", set_aside=False)
    if arguments.groups is not None and not 0 < arguments.groups <= len(saved.tasks):
        raise UserError(
            f"{len(saved.tasks)} tasks cannot be divided into {arguments.groups} groups.",
            where=f"--groups {arguments.groups}",
            fix=f"Give a number from 1 to {len(saved.tasks)}.",
            code="invalid-value",
        )
    given = {
        "data": arguments.data,
        "cache_dir": arguments.cache_dir,
        "device": arguments.device,
        "optimizer.lr": arguments.lr,
        "downstream": list(saved.tasks),
    }
    flags = {key: value for key, value in given.items() if value is not None}
    config = build_config(flags=flags, base=saved.config)
    check_evaluate(saved, config)
    out = arguments.out or path.parent
    out.mkdir(parents=True, exist_ok=True)
    with exit_on_signals(), tempfile.TemporaryDirectory() as folder:
        runner = open_run(saved, config, Path(folder), where=str(path))
        affinity = measure_affinity(runner, arguments.steps)
    records = [{"checkpoint": str(path), **record} for record in affinity.records()]
    _write(out, affinity, records, f"{path.name}, {arguments.steps} batches")
    if arguments.json:
        print(json.dumps(records, indent=2, allow_nan=False))
    elif arguments.csv:
        sys.stdout.write(_csv(records))
    else:
        OUTPUT.print(_table(affinity, path.name))
    if arguments.groups is not None:
        groups = " | ".join(",".join(group) for group in affinity.groups(arguments.groups))
        text = f"Best division into {arguments.groups} groups: {groups}"
        if arguments.json or arguments.csv:
            logger.info("%s", text)
        else:
            OUTPUT.print(text, soft_wrap=True, markup=False, highlight=False)


def _check_positive(flag: str, value: int) -> None:
    if value < 1:
        raise UserError(
            f"{value} is not a positive number.", where=f"{flag} {value}", code="invalid-value"
        )


def _write(out: Path, affinity: Affinity, records: list[dict[str, Any]], what: str) -> None:
    from s3prl_mtl.fileio.atomic import atomic_path, replace_text
    from s3prl_mtl.tracking.heat_maps import heat_maps

    scaled, unit = _scaled(affinity)
    title = f"Affinity in {unit}: a step on the row, the loss of the column ({what})"
    image = heat_maps({"": scaled}, affinity.tasks, title, limit=100.0, shown=_shown)
    replace_text(out / "affinity.csv", _csv(records))
    with atomic_path(out / "affinity.png") as partial:
        image.save(partial)
    logger.info("Wrote affinity.csv and affinity.png in %s.", os.path.abspath(out))


def _csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _scaled(affinity: Affinity) -> tuple[list[list[float]], str]:
    """The affinities in a unit that leaves two digits of the largest one between two tasks.

    The diagonal, which is larger, does not count.
    """
    between = affinity.values.nan_to_num(0.0).fill_diagonal_(0.0).abs().max().item()
    exponent = math.floor(math.log10(between)) - 1 if between > 0 else -2
    return (affinity.values / 10.0**exponent).tolist(), f"{10.0 ** (exponent + 2):g} %"


def _shown(value: float) -> str:
    return f"{value:+.1f}" if abs(value) < 100 else f"{value:+.0f}"


def _table(affinity: Affinity, name: str) -> Table:
    """How much of the loss of the column a step on the task of the row removes."""
    from rich.table import Table

    scaled, unit = _scaled(affinity)
    title = f"Affinity in {unit}: a step on the row, the loss of the column ({name})"
    table = Table(title=title, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("step on")
    for task in affinity.tasks:
        table.add_column(task, justify="right", overflow="fold")
    for task, row in zip(affinity.tasks, scaled, strict=True):
        table.add_row(task, *map(_shown, row))
    return table
