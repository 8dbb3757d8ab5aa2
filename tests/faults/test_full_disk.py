"""A full disk: the run ends, and earlier checkpoints stay intact.

A limit on the size of files, which is set from outside while the run goes on, stands for the full
disk: either way the system refuses a write in the middle of the file.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.launching import (
    TRACE,
    Launcher,
    assert_ended_alike,
    newest,
    partial_files,
    words_of,
)

WORDS = words_of("ks,er", 20)
LIMIT_BYTES = 1_000_000
"""Well below a checkpoint, well above log and metrics."""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_checkpoint_that_does_not_fit_leaves_earlier_ones_intact(
    ranks: int, launch: Launcher, uninterrupted: Callable[..., Path]
):
    run = launch(WORDS, ranks=ranks)
    pids = run.rank_pids()
    run.until(lambda: list(run.folder.glob("states-*.ckpt")), "a checkpoint is saved")
    resource.prlimit(pids[0], resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))
    code = run.wait()
    # torchrun has an exit code of its own, and tells that of the rank.
    assert code == (2 if ranks == 1 else 1), run.terminal
    assert ranks == 1 or "exitcode  : 2" in run.terminal
    assert "[file-unwritable]" in run.logged("training.run_dir", "ERROR")[0]
    assert "states-" in run.terminal and "-a" in run.terminal
    assert TRACE not in run.terminal
    assert not partial_files(run.folder)
    assert newest(run.folder) == run.logged_step() - 1
    launch.finished(WORDS, "-a", ranks=ranks)
    assert_ended_alike(run.folder, uninterrupted(WORDS, ranks), 20)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_metrics_that_do_not_fit_end_the_run_with_their_name(
    ranks: int, launch: Launcher, uninterrupted: Callable[..., Path]
):
    """Nothing has been saved yet, and the disk is full: `-a` starts from the beginning."""
    words = words_of("ks,er", 20, runner__save_step=1000)
    run = launch(words, ranks=ranks)
    pids = run.rank_pids()
    run.until_step(1)
    resource.prlimit(pids[0], resource.RLIMIT_FSIZE, (4096, 4096))
    assert run.wait() == (2 if ranks == 1 else 1), run.terminal
    assert ranks == 1 or "exitcode  : 2" in run.terminal
    assert "metrics.jsonl" in run.terminal and "-a" in run.terminal
    assert TRACE not in run.terminal
    launch.finished(words, "-a", ranks=ranks)
    assert_ended_alike(run.folder, uninterrupted(words, ranks), 20)
