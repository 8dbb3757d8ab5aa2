"""If a rank is killed, frozen or hangs, the other ranks name it and exit."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.launching import TRACE, Launcher, assert_ended_alike, newest, words_of
from tests.launcher import is_alive, send, until

TIMEOUT = 10.0
WORDS = words_of("ks,er", 400, "--timeout", f"{TIMEOUT:g}")
SHORT = words_of("ks,er", 20, "--timeout", "60", runner__save_step=4)


def assert_named(text: str, rank: int, pid: int) -> None:
    """An error names the rank, its machine and its process."""
    name = re.escape(f"Rank {rank} (host {socket.gethostname()}, process {pid})")
    assert re.search(rf"{name} .*at step \d+", text), text


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "victim"), [(2, 1), (3, 0), (3, 2)])
def test_when_a_rank_is_killed_the_others_name_it_and_end(
    ranks: int, victim: int, launch: Launcher
):
    run = launch(WORDS, ranks=ranks)
    pids = run.rank_pids()
    run.until_step(3)
    send(pids[victim], signal.SIGKILL)
    assert run.wait(30) == 1
    for rank in set(pids) - {victim}:
        assert_named(run.log(rank), victim, pids[victim])
    assert_named(run.terminal, victim, pids[victim])
    assert TRACE not in run.terminal
    assert not any(map(is_alive, pids.values()))
    assert newest(run.folder) >= run.logged_step() - 1


@pytest.mark.slow
def test_when_a_rank_is_frozen_the_others_name_it_within_the_timeout(launch: Launcher):
    run = launch(WORDS, ranks=2)
    pids = run.rank_pids()
    run.until_step(3)
    send(pids[1], signal.SIGSTOP)
    run.until(lambda: not is_alive(pids[0]), "rank 0 ended", TIMEOUT + 20)
    assert_named(run.log(), 1, pids[1])
    assert_named(run.terminal, 1, pids[1])
    send(pids[1], signal.SIGKILL)  # torchrun would do it after 30 s
    assert run.wait() == 1
    assert newest(run.folder) >= run.logged_step() - 1


@pytest.mark.slow
def test_when_the_data_of_a_rank_hang_the_others_name_its_activity(
    launch: Launcher, plugin: Callable[[str], dict[str, str]]
):
    variables = plugin(
        "def item(i):\n"
        "    if RANK == 1 and i == 15:\n"
        "        import threading\n"
        "        threading.Event().wait()\n"
    )
    words = words_of("ks,tones", 20, "--timeout", f"{TIMEOUT:g}")
    run = launch(words, ranks=2, **variables)
    pids = run.rank_pids()
    run.until_step(1)
    run.until(lambda: not is_alive(pids[0]), "rank 0 ended", TIMEOUT + 20)
    name = rf"Rank 1 \(host .*, process {pids[1]}\)"
    stalled = rf"{name} .*at step \d+ .*reading a batch of tones"
    assert re.search(stalled, run.terminal), run.terminal
    send(pids[1], signal.SIGKILL)
    assert run.wait() == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_restarts_the_run_from_its_last_checkpoint(
    victim: int, launch: Launcher, uninterrupted: Callable[..., Path]
):
    run = launch(SHORT, ranks=2, torchrun=["--max-restarts", "1"])
    pids = run.rank_pids()
    run.until_step(6)
    send(pids[victim], signal.SIGKILL)
    assert run.wait() == 0, run.terminal
    assert re.search(r"states-\d+\.ckpt at step \d+", run.terminal)
    assert_ended_alike(run.folder, uninterrupted(SHORT, 2), 20)


@pytest.mark.slow
def test_a_run_resumes_after_torchrun_was_killed(
    launch: Launcher, uninterrupted: Callable[..., Path]
):
    """The ranks get no signal; they lose the store hosted by torchrun, and continue training."""
    run = launch(SHORT, ranks=2)
    pids = run.rank_pids()
    run.until_step(6)
    send(run.process.pid, signal.SIGKILL)
    run.wait()
    until(lambda: not any(map(is_alive, pids.values())), lambda: run.terminal, seconds=60)
    launch.finished(SHORT, "-a", ranks=2)
    assert_ended_alike(run.folder, uninterrupted(SHORT, 2), 20)
