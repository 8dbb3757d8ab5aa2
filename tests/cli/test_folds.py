"""`folds`: a run for each fold, one mean."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest
import yaml

from s3prl_mtl.cli.folds import run
from s3prl_mtl.cli.main import command_parser, main
from tests.mistakes import user_error
from tests.study.studies import write_run

FOLDS = ["fold1", "fold2", "fold3", "fold4", "fold5"]
ACCURACIES = [0.61, 0.64, 0.58, 0.66, 0.63]


def numbers(out: Path) -> list[str]:
    return re.findall(r"([\d.]+) %", (out / "table.md").read_text().splitlines()[2])


def test_the_mean_is_that_of_the_five_folds(tmp_path: Path, capsys) -> None:
    for fold, accuracy in zip(FOLDS, ACCURACIES, strict=True):
        write_run(tmp_path / fold, {"er": accuracy})
    assert main(["folds", "-p", str(tmp_path)]) == 0  # finished folds are not trained again
    shown = [f"{100 * value:.2f}" for value in ACCURACIES]
    mean, deviation = statistics.fmean(ACCURACIES), statistics.stdev(ACCURACIES)
    assert numbers(tmp_path) == [*shown, f"{100 * mean:.2f}", f"{100 * deviation:.2f}"]


@pytest.mark.parametrize("flag", ["-p", "-n", "-a", "--auto-resume"])
def test_folders_are_not_among_the_flags(flag: str, tmp_path: Path) -> None:
    arguments = command_parser("folds").parse_args(
        ["-p", str(tmp_path), "--", "-d", "er", flag, "x"]
    )
    with user_error("conflicting-options", where=flag):
        run(arguments)


def test_a_training_that_fails_ends_the_command_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["folds", "-p", str(tmp_path), "--values", "fold1", "--", "-d", "no-such-task"])
    assert end.value.code == 2


@pytest.mark.slow
def test_each_fold_is_trained_with_its_own_session(tiny_corpus: Path, tmp_path: Path) -> None:
    words = ["-u", "hubert_tiny", "-d", "er", "--data", str(tiny_corpus), "--steps", "2"]
    words += ["--freeze_upstream", "-o", "runner.eval_step=2", "--device", "cpu"]
    assert main(["folds", "-p", str(tmp_path), "--values", "fold1,fold4", "--", *words]) == 0
    configs = [yaml.safe_load((tmp_path / f / "config.yaml").read_text()) for f in FOLDS[::3]]
    assert [c["er"]["downstream_expert"]["datarc"]["test_fold"] for c in configs] == FOLDS[::3]
    assert [config["runner"]["eval_step"] for config in configs] == [2, 2]
    first, second, mean, _ = map(float, numbers(tmp_path))
    assert mean == pytest.approx((first + second) / 2, abs=0.011)
