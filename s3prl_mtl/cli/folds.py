"""`folds`: train once for each fold of cross-validation, and print the mean."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from s3prl_mtl.errors import UserError
from s3prl_mtl.tracking.console import OUTPUT

logger = logging.getLogger(__name__)

SETTING = "er.downstream_expert.datarc.test_fold"
FOLDS = "fold1,fold2,fold3,fold4,fold5"
SET_HERE = {
    *("-p", "--expdir", "-n", "--expname", "-a", "--auto_resume", "--auto-resume"),
    *("-e", "--past_exp", "--past-exp"),
}


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
        "--setting", metavar="KEY", default=SETTING, help=f"that selects the fold ({SETTING})"
    )
    parser.add_argument(
        "--values", metavar="NAME,...", default=FOLDS, help=f"of the setting ({FOLDS})"
    )
    parser.add_argument("flags", metavar="FLAG", nargs="*", help="after --: the flags of train")


def run(arguments: argparse.Namespace) -> None:
    """Train the folds that are not finished, and write and print their results and the mean.

    Raises:
        UserError: the flags choose folders of their own.
        SystemExit: the training of a fold fails; the same command goes on with it.
    """
    for flag in arguments.flags:
        if flag.partition("=")[0] in SET_HERE:
            raise UserError(
                f"{flag} is set for each fold: the runs are in DIR/<fold>.",
                where=flag,
                fix="Leave it out.",
                code="conflicting-options",
            )
    from s3prl_mtl.study.fold_results import fold_table, write_fold_results
    from s3prl_mtl.training.run_record import RunRecord

    values = [value.strip() for value in arguments.values.split(",")]
    for value in values:
        folder = arguments.expdir / value
        if RunRecord(folder).problem is None:
            logger.info("%s is finished.", folder)
        else:
            _train(folder, f"{arguments.setting}={value}", arguments.flags)
    folders = {value: arguments.expdir / value for value in values}
    path = write_fold_results(arguments.expdir, folders)
    OUTPUT.print(fold_table(folders))
    OUTPUT.print(f"The results are in {path}", soft_wrap=True, highlight=False)


def _train(folder: Path, override: str, flags: Sequence[str]) -> None:
    """Train one fold in a process of its own, or resume it."""
    words = [*flags]
    given = next((words.index(flag) for flag in ("-o", "--override") if flag in words), None)
    if given is None:
        words += ["-o", override]
    else:
        words[given + 1] = f"{words[given + 1]},,{override}"
    command = [sys.executable, "-m", "s3prl_mtl", "train", *words, "-p", str(folder), "-a"]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # it has shown its error
