"""`results`: the results of a run as a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_mtl.tracking.console import OUTPUT

DESCRIPTION = "Show the results of a run as a table."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--all", action="store_true", help="every evaluated split and metric")


def run(arguments: argparse.Namespace) -> None:
    from s3prl_mtl.tracking.results_table import results_table

    OUTPUT.print(results_table(arguments.run, everything=arguments.all))
