"""SIGTERM and SIGUSR1, the signals of schedulers: the run is saved and exits with code 0.

Without a signal, the run of every test is saved at its end only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from s3prl_mtl.checkpoint import files as checkpoints
from tests.faults.launching import TRACE, Launcher, Run, assert_ended_alike, newest, words_of
from tests.launcher import children, is_alive, send

GRACE_SECONDS = 30.0
"""What schedulers and torchrun give."""

WORDS = words_of("ks,er", 30, runner__save_step=1000)
WITH_WORKERS = words_of(
    "ks,er",
    30,
    runner__save_step=1000,
    runner__num_workers=2,
    ks__downstream_expert__datarc__train_batch_size=1,
)
WITH_EVALUATION = words_of("ks,asr", 12, runner__save_step=1000, runner__eval_step=6)
EVERYTHING = words_of("all", 2)

SIGNALS = [signal.SIGTERM, signal.SIGUSR1]


def assert_saved_itself(run: Run, exit_code: int = 0) -> int:
    """It ends in time, and its state is that of the very step that it logged last."""
    assert run.wait(GRACE_SECONDS) == exit_code, run.terminal
    step = run.logged_step()
    assert f"step {step}" in run.logged("training.runner", "WARNING")[-1]
    assert [path.name for path in checkpoints.states_files(run.folder)] == [f"states-{step}.ckpt"]
    assert newest(run.folder) == step
    return step


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_one_process_saves_its_current_step(
    number: signal.Signals,
    launch: Launcher,
    uninterrupted: Callable[..., Path],
):
    run = launch(WORDS)
    run.until_step(3)
    send(run.process.pid, number)
    assert 3 <= assert_saved_itself(run) < 30
    launch.finished(WORDS, "-a")
    assert_ended_alike(run.folder, uninterrupted(WORDS), 30)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_process_and_its_loader_workers_loses_nothing(
    number: signal.Signals,
    launch: Launcher,
    uninterrupted: Callable[..., Path],
):
    run = launch(WITH_WORKERS)
    run.until_step(3)
    assert run.until(lambda: children(run.process.pid), "there are workers")
    os.killpg(run.process.pid, number)
    assert 3 <= assert_saved_itself(run) < 30
    assert run.logged("data.workers") == []
    launch.finished(WITH_WORKERS, "-a")
    assert_ended_alike(run.folder, uninterrupted(WITH_WORKERS), 30)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_an_evaluation_saves_the_run_and_the_evaluation_is_repeated(
    number: signal.Signals,
    ranks: int,
    launch: Launcher,
    uninterrupted: Callable[..., Path],
):
    run = launch(WITH_EVALUATION, ranks=ranks)
    victim = run.rank_pids()[ranks - 1]
    run.until_step(6)  # the evaluation is what comes next
    send(victim, number)
    assert assert_saved_itself(run) == 6
    state = checkpoints.load(run.folder / "states-6.ckpt")
    assert state.training.evaluated_step == 0, "the evaluation was over before the signal came"
    launch.finished(WITH_EVALUATION, "-a", ranks=ranks)
    assert_ended_alike(run.folder, uninterrupted(WITH_EVALUATION, ranks), 12)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_corpora_are_read_ends_the_run_at_once(
    number: signal.Signals,
    ranks: int,
    launch: Launcher,
    uninterrupted: Callable[..., Path],
    tmp_path: Path,
):
    cache = str(tmp_path / "nothing scanned yet")
    run = launch(EVERYTHING, ranks=ranks, S3PRL_MTL_CACHE=cache)
    victim = run.rank_pids()[ranks - 1]
    run.until_logged("training.build", "INFO", rank=ranks - 1)
    send(victim, number)
    code = run.wait(GRACE_SECONDS)
    assert code == 0, run.terminal
    assert TRACE not in run.terminal
    assert not checkpoints.states_files(run.folder), "it had begun to train"
    launch.finished(EVERYTHING, "-a", ranks=ranks, S3PRL_MTL_CACHE=cache)
    assert_ended_alike(run.folder, uninterrupted(EVERYTHING, ranks), 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_one_of_two_ranks_stops_both_at_the_same_step(
    number: signal.Signals,
    launch: Launcher,
    uninterrupted: Callable[..., Path],
):
    run = launch(WORDS, ranks=2)
    victim = run.rank_pids()[1]
    run.until_step(3)
    send(victim, number)
    step = assert_saved_itself(run)
    assert 3 <= step < 30
    launch.finished(WORDS, "-a", ranks=2)
    assert_ended_alike(run.folder, uninterrupted(WORDS, 2), 30)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_torchrun_forwards_a_signal_and_waits_for_the_ranks(
    number: signal.Signals,
    launch: Launcher,
    uninterrupted: Callable[..., Path],
):
    """SIGUSR1 needs `--signals-to-handle`. torchrun has its own exit code."""
    handled = ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    run = launch(WORDS, ranks=2, torchrun=handled)
    ranks = run.rank_pids().values()
    run.until_step(3)
    send(run.process.pid, number)
    assert_saved_itself(run, exit_code=1)
    assert not any(map(is_alive, ranks))
    launch.finished(WORDS, "-a", ranks=2)
    assert_ended_alike(run.folder, uninterrupted(WORDS, 2), 30)


@pytest.mark.slow
def test_signals_to_a_whole_job_with_its_loader_workers_lose_nothing(
    launch: Launcher, uninterrupted: Callable[..., Path]
):
    """torchrun, both ranks and all their loader workers get SIGTERM, as from a scheduler."""
    run = launch(WITH_WORKERS, ranks=2)
    ranks = run.rank_pids().values()
    run.until_step(3)
    run.until(lambda: all(children(rank) for rank in ranks), "there are workers")
    for rank in ranks:
        os.killpg(rank, signal.SIGTERM)
    send(run.process.pid, signal.SIGTERM)
    assert_saved_itself(run, exit_code=1)
    assert run.logged("data.workers") + run.logged("data.workers", rank=1) == []
    launch.finished(WITH_WORKERS, "-a", ranks=2)
    assert_ended_alike(run.folder, uninterrupted(WITH_WORKERS, 2), 30)
