"""Runs killed by SIGKILL resume with the same result."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from s3prl_mtl.checkpoint import files as checkpoints
from tests.faults.launching import Launcher, Run, assert_ended_alike, newest, words_of
from tests.launcher import send

STARTING_LINES = 10
"""Maximum number of lines in the log of a run before its first step."""


@pytest.mark.slow
def test_a_run_killed_while_it_saves_loses_that_step_only(
    launch: Launcher, uninterrupted: Callable[..., Path]
):
    words = words_of("ks,er", 20)
    run = launch(words)
    run.until_step(2)
    partial = run.freeze_while_saving(run.process.pid)
    run.kill()
    assert partial.is_file()
    assert newest(run.folder) >= run.logged_step() - 1
    launch.finished(words, "-a")
    assert_ended_alike(run.folder, uninterrupted(words), 20)


@pytest.mark.slow
def test_ten_kills_at_random_moments_five_of_them_while_saving_lose_nothing(
    launch: Launcher, uninterrupted: Callable[..., Path]
):
    """Either torchrun and both ranks are killed at once, or one random rank."""
    ranks = 2
    chance = random.Random("ten kills")
    words = words_of("ks,er", 70, "--timeout", "60", runner__eval_step=10)
    moments = ["saving"] * 5 + ["training"] * 3 + ["starting"] * 2
    chance.shuffle(moments)
    kept = 0
    for number, moment in enumerate(moments):
        run = launch(words, "-a", ranks=ranks)
        victim = None
        if number % 2:
            # Only the first rank saves.
            pids = run.rank_pids()
            victim = pids[0 if moment == "saving" else chance.randrange(ranks)]
        partial = None
        if moment == "starting":
            run.until_lines(chance.randint(0, STARTING_LINES))
        elif moment == "training":
            run.until_step(kept + chance.randint(1, 3))
        else:
            run.until_step(kept + chance.randint(1, 3))
            partial = run.freeze_while_saving(run.rank_pids()[0])
        kill(run, victim)
        assert partial is None or partial.is_file()
        now = newest(run.folder)
        assert now >= kept, "a checkpoint is lost"
        # There is a checkpoint of every step: one at most was taken and not saved.
        assert now >= run.logged_step() - 1
        kept = now
    assert 0 < kept < 70
    end = launch.finished(words, "-a", ranks=ranks)
    assert end.logged("api.training", "INFO"), "it resumed"
    assert_ended_alike(end.folder, uninterrupted(words, ranks), 70)
    assert len(checkpoints.states_files(end.folder)) == 2


def kill(run: Run, victim: int | None) -> None:
    """One rank, or everything at once."""
    if victim is None:
        run.kill()
        return
    send(victim, signal.SIGKILL)
    assert run.wait() == 1, run.terminal
