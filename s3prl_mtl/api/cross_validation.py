"""Cross-validation: a run for each fold. Flags: `s3prl_mtl/cli/folds.py`."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.api.calls import PathLike, Words, callable_from_python, listed, output_folder
from s3prl_mtl.errors import UserError
from s3prl_mtl.study.fold_results import FoldResult, fold_results, write_fold_results
from s3prl_mtl.training.run_record import RunRecord

logger = logging.getLogger(__name__)

SETTING = "er.downstream_expert.datarc.test_fold"
FOLDS = "fold1,fold2,fold3,fold4,fold5"
SET_HERE = {
    *("-p", "--expdir", "-n", "--expname", "-a", "--auto_resume", "--auto-resume"),
    *("-e", "--past_exp", "--past-exp"),
}


class FoldNotTrained(UserError):
    """The training of a fold failed or was interrupted; the same call resumes it.

    Attributes:
        exit_code: of its process, which has shown the reason.
    """

    def __init__(self, folder: Path, exit_code: int) -> None:
        super().__init__(
            f"The training in {folder} ended with exit code {exit_code}.",
            where=str(folder),
            fix=f"See {folder / 'log.txt'}; the same call goes on with this fold.",
            code="run-failed",
        )
        self.exit_code = exit_code


@dataclass(frozen=True)
class CrossValidation:
    """The runs of all folds.

    Attributes:
        runs: the folder of each fold.
        results: the headline metrics, over the folds.
        table: the file with the table, `table.md`.
    """

    runs: dict[str, Path]
    results: Sequence[FoldResult]
    table: Path


@callable_from_python
def folds(
    expdir: PathLike,
    *,
    flags: Sequence[str] = (),
    setting: str = SETTING,
    values: Words = FOLDS,
) -> CrossValidation:
    """Train once for each fold, in a process of its own: the command `folds`.

    Finished folds are not trained again, and interrupted ones resumed.

    Args:
        expdir: folder of the runs, one for each fold.
        flags: of the command `train`: `["-u", "hubert", "-d", "er", "--data", "corpora"]`.
        setting: dotted key that selects the fold.
        values: of the setting, one for each fold.

    Returns:
        the folders, and each metric with its mean and standard deviation.

    Raises:
        UserError: the flags choose folders of their own.
        FoldNotTrained: the training of a fold failed or was stopped.
    """
    words = listed(flags)
    for flag in words:
        if flag.partition("=")[0] in SET_HERE:
            raise UserError(
                f"{flag} is set for each fold: the runs are in DIR/<fold>.",
                where=flag,
                fix="Leave it out.",
                code="conflicting-options",
            )
    place = output_folder(expdir, "-p")
    names = values.split(",") if isinstance(values, str) else list(values)
    runs = {name: place / name for name in map(str.strip, names)}
    for name, folder in runs.items():
        if RunRecord(folder).problem is None:
            logger.info("%s is finished.", folder)
        else:
            _train(folder, f"{setting}={name}", words)
    return CrossValidation(runs, fold_results(runs), write_fold_results(place, runs))


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
        raise FoldNotTrained(folder, done.returncode)
