"""`results`: the results of a run as a table, or those of several runs side by side."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from s3prl_mtl.cli.parser import call
from s3prl_mtl.fileio.text_tables import csv_text
from s3prl_mtl.tracking.console import OUTPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="the folder of a run")
    parser.add_argument("--all", action="store_true", help="every evaluated split and metric")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="comma-separated values, fractions")
    form.add_argument("--json", action="store_true", help="a list of objects, fractions")


def run(arguments: argparse.Namespace) -> None:
    """Print the last value of every metric, with the step and checkpoint that it is of."""
    from s3prl_mtl.api.reports import results
    from s3prl_mtl.tracking.results_table import comparison_table, results_table

    runs, everything = arguments.runs, arguments.all
    if arguments.json:
        print(json.dumps(call(results, arguments), indent=2, allow_nan=False))
    elif arguments.csv:
        records = call(results, arguments)
        fields = ["run", "task", "split", "metric", "value", "step", "checkpoint"]
        sys.stdout.write(csv_text(fields, records))
    elif len(runs) > 1:
        OUTPUT.print(comparison_table(runs, everything))
    else:
        OUTPUT.print(results_table(runs[0], everything))
