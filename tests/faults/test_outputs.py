"""Output of runs with several ranks."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from s3prl_mtl.tracking.recorder import read_metrics
from tests.faults.launching import Launcher, assert_ended_alike, words_of
from tests.launcher import send

WORDS = words_of("ks,er", 20)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["data", "task"])
def test_only_the_first_rank_writes_metrics_curves_and_terminal(
    parallel: str, launch: Launcher, tmp_path: Path
):
    logs = ["--redirects", "3", "--log-dir", str(tmp_path / "logs")]
    words = words_of("ks,er,ic", 4, "--parallel", parallel, runner__eval_step=2)
    run = launch.finished(words, ranks=3, torchrun=logs)
    printed = {
        (int(path.parent.name), path.name): path.read_text()
        for path in (tmp_path / "logs").rglob("std*.log")
    }
    assert set(printed) == {(r, f"{name}.log") for r in range(3) for name in ("stdout", "stderr")}
    assert "step 4  loss" in printed[0, "stderr.log"] and "accuracy" in printed[0, "stdout.log"]
    assert not any(text for (rank, _), text in printed.items() if rank > 0)
    assert len(list(run.folder.glob("events.out.tfevents.*"))) == 1
    noted = [(e["step"], e["task"], e["split"], e["metric"]) for e in read_metrics(run.folder)]
    assert len(set(noted)) == len(noted)
    assert {task for _, task, _, _ in noted} >= {"ks", "er", "ic", "run"}
    assert {p.name for p in run.folder.glob("log*")} == {
        "log.txt",
        "log-rank1.txt",
        "log-rank2.txt",
    }
    assert all(run.logged("training.build", "INFO", rank) for rank in range(3))


@pytest.mark.slow
def test_a_stalled_rank_is_named_while_the_run_waits_for_it(
    launch: Launcher, uninterrupted: Callable[..., Path]
):
    """Frozen until the warning, after a minute; then the run continues without loss."""
    run = launch(WORDS, ranks=2)
    pids = run.rank_pids()
    run.until_step(3)
    send(pids[1], signal.SIGSTOP)
    warning = run.until_logged("distributed.health", seconds=90)[0]
    assert re.search(rf"rank 1 \(host .*, process {pids[1]}\) for 6\d s", warning)
    assert warning.split(" for ")[0] in run.terminal
    send(pids[1], signal.SIGCONT)
    assert run.wait() == 0, run.terminal
    assert_ended_alike(run.folder, uninterrupted(WORDS, 2), 20)
