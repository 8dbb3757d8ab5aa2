"""`folds`: a run for each fold, one mean."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest
import yaml

from s3prl_mtl import api
from s3prl_mtl.cli.main import main
from s3prl_mtl.study.fold_results import fold_results
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
    (found,) = api.folds(tmp_path).results
    assert dict(found.values) == dict(zip(FOLDS, ACCURACIES, strict=True))
    assert (found.mean, found.deviation) == pytest.approx((mean, deviation))


def test_a_fold_without_a_number_leaves_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "fold1", {"er": 0.5})
    (found,) = fold_results({"fold1": tmp_path / "fold1", "fold2": tmp_path / "fold2"})
    assert found.values == {"fold1": 0.5, "fold2": None}
    assert found.mean is None and found.deviation is None


@pytest.mark.parametrize("flag", ["-p", "-n", "-a", "--auto-resume"])
def test_folders_are_not_among_the_flags(flag: str, tmp_path: Path) -> None:
    with user_error("conflicting-options", where=flag):
        api.folds(tmp_path, flags=["-d", "er", flag, "x"])


def test_a_training_that_fails_ends_the_command_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["folds", "-p", str(tmp_path), "--values", "fold1", "--", "-d", "no-such-task"])
    assert end.value.code == 2
    with user_error("run-failed", where="fold1"):
        api.folds(tmp_path, flags=["-d", "no-such-task"], values=["fold1"])


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
