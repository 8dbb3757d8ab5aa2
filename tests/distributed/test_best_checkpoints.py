"""`evaluate --best` in several processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from s3prl_mtl.tracking.recorder import read_results, read_sources
from tests.launcher import TORCHRUN, Started, environment, free_port, training

STEPS = "runner.eval_step=1"


@pytest.mark.slow
def test_best_checkpoints_are_evaluated_by_two_ranks_as_by_one(
    tmp_path: Path, tiny_corpus: Path, manifest_cache: Path
) -> None:
    variables = environment(tiny_corpus, manifest_cache)
    run = tmp_path / "run"
    words = training(run, 2)
    words[words.index("-o") + 1] = f"{STEPS},,runner.test_first=false,,runner.test_last=false"
    start = [sys.executable, "-m", "s3prl_mtl"]
    with Started([*start, "train", *words], tmp_path / "train.txt", variables) as training_run:
        assert training_run.wait() == 0, training_run.text()
    evaluation = ["evaluate", "-e", str(run), "--best", "-t", "ks:test,er:dev", "-p"]
    torchrun = [*TORCHRUN, "--nproc_per_node", "2", "--master_port", str(free_port())]
    for name, launch in (("one", start), ("two", [*torchrun, "-m", "s3prl_mtl"])):
        folder = tmp_path / name
        output = tmp_path / f"{name}.txt"
        with Started([*launch, *evaluation, str(folder)], output, variables) as evaluated:
            assert evaluated.wait() == 0, evaluated.text()
        # One table, of both tasks.
        assert evaluated.text().count("accuracy ↑") == 2
    one, two = read_results(tmp_path / "one"), read_results(tmp_path / "two")
    assert {task: list(splits) for task, splits in one.items()} == {"ks": ["test"], "er": ["dev"]}
    for task, splits in one.items():
        for split, metrics in splits.items():
            assert two[task][split] == pytest.approx(metrics, rel=1e-5)
    sources = read_sources(tmp_path / "two")
    assert sources["ks"]["test"]["checkpoint"].endswith("ks/dev-best.ckpt")
