"""`folds`: train once for each fold of cross-validation, and print the mean."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from s3prl_mtl.cli.parser import call
from s3prl_mtl.tracking.console import OUTPUT

SETTING = "er.downstream_expert.datarc.test_fold"
FOLDS = "fold1,fold2,fold3,fold4,fold5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Not a positional argument: argparse would not find the flags after it.
    parser.add_argument(
        "-p",
        "--expdir",
        metavar="DIR",
        type=Path,
        required=True,
        help="the folder of the runs, one for each fold",
    )
    parser.add_argument(
        "--setting", metavar="KEY", default=SETTING, help=f"setting of the fold ({SETTING})"
    )
    parser.add_argument(
        "--values", metavar="NAME,...", default=FOLDS, help=f"values of the setting ({FOLDS})"
    )
    parser.add_argument("flags", metavar="FLAG", nargs="*", help="after --: the flags of train")


def run(arguments: argparse.Namespace) -> None:
    """Train the folds that are not finished, and write and print their results and the mean.

    Raises:
        UserError: the flags choose folders of their own.
        SystemExit: the training of a fold fails; the same command goes on with it.
    """
    from s3prl_mtl.api.cross_validation import FoldNotTrained, folds
    from s3prl_mtl.study.fold_results import fold_table

    try:
        found = call(folds, arguments)
    except FoldNotTrained as failure:
        sys.exit(failure.exit_code)  # its process has shown the error
    OUTPUT.print(fold_table(found.runs))
    OUTPUT.print(f"The results are in {found.table}", soft_wrap=True, highlight=False)
