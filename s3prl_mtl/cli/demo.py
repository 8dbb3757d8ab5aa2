"""`demo`: a study of the nine tasks of the mini corpus."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_mtl.cli.parser import call
from s3prl_mtl.cli.study import show_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=Path(".demo"),
        help="folder of corpus and study (default: .demo); an interrupted demo is resumed",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="leave each task out in turn, not only one: 28 trainings in place of 12",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="steps of every training, for tests")


def run(arguments: argparse.Namespace) -> None:
    """Make the corpus, execute the study and show its table.

    Raises:
        SystemExit: a run failed.
        Stopped: a signal came; the runs are saved.
    """
    from s3prl_mtl.api.studies import demo, plan_study

    results = call(demo, arguments, progress=None)
    show_results(results, plan_study(arguments.folder))
