"""`tasks`: the installed tasks."""

from __future__ import annotations

import argparse

from s3prl_mtl.authoring.listing import list_tasks

DESCRIPTION = "List the installed tasks."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")


def run(arguments: argparse.Namespace) -> None:
    list_tasks(arguments.data)
