"""A loader worker is killed, as by the system when memory runs out."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.launching import Launcher, assert_ended_alike, words_of
from tests.launcher import children, send

# One utterance a batch: epochs that are long enough for workers to be met at work.
WORDS = words_of(
    "ks,er",
    40,
    runner__save_step=1000,
    runner__num_workers=1,
    ks__downstream_expert__datarc__train_batch_size=1,
)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_worker_is_replaced_and_no_batch_is_lost(
    ranks: int, launch: Launcher, uninterrupted: Callable[..., Path]
):
    run = launch(WORDS, ranks=ranks)
    rank = ranks - 1
    pid = run.rank_pids()[rank]
    killed: set[int] = set()
    deaths = 0
    while deaths < 2:
        worker = run.until(lambda: set(children(pid)) - killed, "there is a worker").pop()
        step = run.logged_step()
        send(worker, signal.SIGKILL)
        killed.add(worker)
        # A worker that had nothing left to read is not missed.
        run.until_step(step + 4)
        deaths = len(run.logged("data.workers", rank=rank))
    assert run.wait() == 0, run.terminal
    assert_ended_alike(run.folder, uninterrupted(WORDS, ranks), 40)
