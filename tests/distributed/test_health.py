"""Watch with real processes and a real TCPStore: ranks are killed, frozen and kept busy."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
from torch.distributed import PrefixStore, TCPStore

from s3prl_mtl.distributed import health
from s3prl_mtl.distributed.health import Watch
from s3prl_mtl.distributed.peer_status import Heartbeat
from tests.forked import FORKED
from tests.launcher import until

HEARTBEAT_SECONDS = 0.2
DEADLINE_SECONDS = 60.0
LOST = RuntimeError("Connection closed by peer [127.0.0.1]:4711")


def client(port: int) -> PrefixStore:
    timeout = timedelta(seconds=DEADLINE_SECONDS)
    return PrefixStore("watch", TCPStore("127.0.0.1", port, is_master=False, timeout=timeout))


def live_as(rank: int, world_size: int, port: int, orders: Connection) -> None:
    """A rank that does what it is told, and otherwise blocks where it is."""
    watch = Watch(client(port), rank, world_size, heartbeat_seconds=HEARTBEAT_SECONDS)
    watch.start()
    with ExitStack() as activities:
        orders.send("started")
        while True:
            order, *arguments = orders.recv()
            if order == "enter":
                orders.send(activities.enter_context(watch.doing(*arguments)))
            elif order == "step":
                watch.step = arguments[0]
                orders.send(None)
            elif order == "exit":
                return
            else:
                answer = getattr(watch, order)
                orders.send(answer(*arguments) if callable(answer) else answer)


def host_the_store(port: int, orders: Connection) -> None:
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    orders.send(store.port)
    orders.recv()


def spawn(target: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    here, there = FORKED.Pipe()
    process = FORKED.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    there.close()
    return process, here


class OtherRank:
    def __init__(self, rank: int, world_size: int, port: int) -> None:
        self.process, self.orders = spawn(live_as, rank, world_size, port)
        self.answer()
        self.pid: int = self.process.pid
        self.name = f"rank {rank} (host {socket.gethostname()}, process {self.pid})"

    def tell(self, *order: Any) -> None:
        self.orders.send(order)

    def answer(self) -> Any:
        assert self.orders.poll(DEADLINE_SECONDS), "the other rank does not answer"
        return self.orders.recv()

    def ask(self, *order: Any) -> Any:
        self.tell(*order)
        return self.answer()

    def leave(self) -> None:
        self.tell("exit")
        self.process.join(DEADLINE_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(DEADLINE_SECONDS)


class Job:
    """This process is rank 0; it also hosts the store, unless another one does."""

    def __init__(self) -> None:
        self.undo = ExitStack()

    def start(
        self, world_size: int, stall_seconds: float = 600.0, port: int | None = None
    ) -> tuple[Watch, list[OtherRank]]:
        if port is None:
            self.server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            port = self.server.port
        self.store = client(port)
        watch = Watch(
            self.store,
            0,
            world_size,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            stall_seconds=stall_seconds,
        )
        watch.start()
        self.undo.callback(watch.close)
        others = []
        for rank in range(1, world_size):
            others.append(OtherRank(rank, world_size, port))
            self.undo.callback(others[-1].kill)
        return watch, others

    def host(self, port: int = 0) -> tuple[Any, int]:
        """A process that hosts the store, and its port."""
        process, orders = spawn(host_the_store, port)
        self.undo.callback(process.join)
        self.undo.callback(process.kill)
        self.undo.callback(orders.close)  # it ends when nobody holds the other end
        assert orders.poll(DEADLINE_SECONDS)
        return process, orders.recv()


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    with job.undo:
        yield job


def warnings(caplog: pytest.LogCaptureFixture) -> list[tuple[Any, ...]]:
    """The arguments of every warning."""
    return [
        record.args
        for record in caplog.records
        if record.name == health.__name__ and record.levelno == logging.WARNING
    ]


def test_a_killed_rank_is_named_with_its_process(job: Job) -> None:
    watch, (victim, witness) = job.start(3)
    victim.ask("step", 7)
    until(lambda: Heartbeat.from_json(job.store.get("heartbeat/1")).step == 7)
    victim.kill()
    fault = watch.find_fault(LOST)
    assert fault.ranks == {1: "silent"}
    assert f"R{victim.name[1:]}" in fault.text and "step 7" in fault.text
    assert witness.name[1:] not in fault.text


def test_a_frozen_rank_is_named_as_silent(job: Job) -> None:
    watch, (victim, witness) = job.start(3)
    os.kill(victim.pid, signal.SIGSTOP)
    fault = watch.find_fault(LOST)
    assert fault.ranks == {1: "silent"}
    assert victim.name[1:] in fault.text and witness.name[1:] not in fault.text


def test_a_rank_that_never_joined_is_named(job: Job) -> None:
    job.start(1)
    lonely = Watch(client(job.server.port), 1, 3, heartbeat_seconds=HEARTBEAT_SECONDS)
    lonely.start()
    job.undo.callback(lonely.close)
    assert lonely.find_fault(LOST).ranks == {2: "absent"}
    assert lonely.speaker == 0, "it is alive, and not at fault"


def test_a_busy_rank_is_at_fault_and_one_that_waits_is_not(job: Job) -> None:
    watch, (busy, waiting) = job.start(3)
    busy.ask("step", 120)
    busy.ask("enter", "in the backward pass")
    waiting.ask("enter", "waiting for the other ranks", True)
    fault = watch.find_fault(LOST)
    assert fault.ranks == {1: "stalled"}
    assert all(part in fault.text for part in (busy.name[1:], "step 120", "in the backward pass"))
    assert waiting.name[1:] not in fault.text


def test_the_lowest_running_rank_reports_for_all(job: Job) -> None:
    watch, (first, second) = job.start(3)
    with watch.doing("reading a batch of asr"):
        for other in (first, second):
            other.ask("enter", "waiting for the other ranks", True)
        assert second.ask("find_fault", LOST).ranks == {0: "stalled"}
    assert second.ask("speaker") == 1, "rank 0 is stalled"


def test_a_long_wait_names_the_rank_that_keeps_the_others_waiting(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    watch, (busy, waiting) = job.start(3, stall_seconds=1.0)
    busy.ask("step", 120)
    busy.ask("enter", "reading a batch of asr")
    waiting.ask("enter", "waiting for the other ranks", True)
    with watch.doing("waiting for the other ranks", waiting=True):
        until(lambda: len(warnings(caplog)) >= 2)
    found = warnings(caplog)
    waits = [float(wait.removesuffix(" s")) for _, wait, _ in found]
    assert waits == sorted(waits)
    for name, _, state in found:
        assert name == busy.name
        assert "step 120" in state and "reading a batch of asr" in state


def test_a_long_wait_names_a_frozen_rank_as_silent(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    watch, (frozen, waiting) = job.start(3, stall_seconds=3.0)
    for other in (frozen, waiting):
        other.ask("enter", "waiting for the other ranks", True)
    os.kill(frozen.pid, signal.SIGSTOP)
    with watch.doing("waiting for the other ranks", waiting=True):
        until(lambda: warnings(caplog))
    ((name, _, state),) = warnings(caplog)
    assert name == frozen.name
    assert "step 0" in state and waiting.name not in state


def test_a_long_wait_of_all_ranks_names_none_of_them(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    watch, (other,) = job.start(2, stall_seconds=1.0)
    other.ask("enter", "waiting for the other ranks", True)
    until(lambda: Heartbeat.from_json(job.store.get("heartbeat/1")).waiting)
    with watch.doing("waiting for the other ranks", waiting=True):
        until(lambda: warnings(caplog))
    assert warnings(caplog)[0][:2] == (0, "waiting for the other ranks")


def test_short_waits_and_long_work_are_not_reported(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    watch, _ = job.start(2, stall_seconds=4 * HEARTBEAT_SECONDS)
    began = Heartbeat.from_json(job.store.get("heartbeat/0")).counter
    with watch.doing("in the backward pass"):
        # Many waits, each far shorter than the limit, together far longer; and long work between.
        while Heartbeat.from_json(job.store.get("heartbeat/0")).counter < began + 12:
            with watch.doing("waiting for the other ranks", waiting=True):
                job.store.check(["heartbeat/0"])
    assert warnings(caplog) == []


def test_the_rank_with_an_error_of_its_own_is_at_fault_and_those_that_lost_it_are_not(
    job: Job,
) -> None:
    watch, (origin, bystander) = job.start(3)
    origin.ask("step", 31)
    reason = "asr has been infinite for 50 steps."
    origin.ask("fail", reason)
    origin.leave()
    bystander.tell("find_fault", LOST)
    fault = watch.find_fault(LOST)
    assert fault.ranks == {1: "failed"}
    assert "step 31" in fault.text and reason in fault.text
    assert bystander.answer() == fault


def test_a_rank_that_ended_because_of_another_is_not_at_fault(job: Job) -> None:
    watch, (killed, bystander) = job.start(3)
    killed.kill()
    assert bystander.ask("find_fault", LOST).ranks == {1: "silent"}
    bystander.ask("fail", "RankLost: another is gone")
    bystander.leave()
    assert watch.find_fault(LOST).ranks == {1: "silent"}


def test_a_rank_that_closed_its_watch_has_left(job: Job) -> None:
    watch, (other,) = job.start(2)
    other.ask("close")
    other.leave()
    assert watch.find_fault(LOST).ranks == {1: "left"}


def test_without_a_rank_at_fault_the_error_itself_is_shown(job: Job) -> None:
    watch, (other,) = job.start(2)
    other.ask("enter", "waiting for the other ranks", True)
    fault = watch.find_fault(RuntimeError("Timed out\nand a trace"))
    assert fault.ranks == {} and "Timed out" in fault.text and "trace" not in fault.text


def test_every_rank_learns_that_one_was_asked_to_stop(job: Job) -> None:
    watch, (asked, other) = job.start(3)
    assert watch.stop_asked is None
    asked.ask("ask_to_stop", "SIGTERM")
    assert asked.ask("stop_asked") == "SIGTERM"
    until(lambda: watch.stop_asked)
    assert watch.stop_asked == "SIGTERM"
    until(lambda: other.ask("stop_asked") == "SIGTERM")


def test_the_activity_before_a_context_is_restored_after_it(job: Job) -> None:
    watch, _ = job.start(1)

    def told() -> tuple[str, bool]:
        heartbeat = Heartbeat.from_json(job.store.get("heartbeat/0"))
        return heartbeat.what, heartbeat.waiting

    with watch.doing("in the backward pass"):
        with pytest.raises(ZeroDivisionError), watch.doing("waiting", waiting=True):
            until(lambda: told() == ("waiting", True))
            _ = 1 / 0
        until(lambda: told() == ("in the backward pass", False))
    until(lambda: told() == ("starting", False))


def test_a_rank_sends_heartbeats_while_its_main_thread_blocks_in_the_store(job: Job) -> None:
    job.start(1)
    blocked = threading.Thread(target=lambda: job.store.get("comes late"))
    blocked.start()
    reader = client(job.server.port)
    first = Heartbeat.from_json(reader.get("heartbeat/0")).counter
    until(lambda: Heartbeat.from_json(reader.get("heartbeat/0")).counter > first + 3)
    assert blocked.is_alive()
    reader.set("comes late", "now")
    blocked.join(DEADLINE_SECONDS)


def test_a_dead_store_is_logged_once(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    host, port = job.host()
    watch, _ = job.start(2, port=port)
    host.kill()
    until(lambda: warnings(caplog))
    for _ in range(2):
        assert watch.find_fault(LOST).ranks == {}
    watch.fail("nobody will hear of it")
    assert len(warnings(caplog)) == 1


def test_a_store_that_comes_back_is_used_again(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "RETRY_SECONDS", HEARTBEAT_SECONDS)
    host, port = job.host()
    watch, _ = job.start(1, port=port)
    host.kill()
    until(lambda: warnings(caplog))
    job.host(port)
    until(lambda: len(warnings(caplog)) == 2)
    assert [args[0] for args in warnings(caplog)] == [0, 0]
    watch.step = 5
    reader = client(port)
    until(lambda: Heartbeat.from_json(reader.get("heartbeat/0")).step == 5)


def test_a_store_that_does_not_answer_hangs_no_rank(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ANSWER_SECONDS", 1.0)
    host, port = job.host()
    watch, _ = job.start(2, port=port)
    os.kill(host.pid, signal.SIGSTOP)
    assert watch.find_fault(LOST).ranks == {}
    watch.close()
    host.kill()  # Otherwise the thread of the watch waits for an answer.


@pytest.mark.parametrize("frozen", [False, True], ids=["a live store", "a frozen store"])
def test_an_interpreter_with_a_watch_ends_cleanly(job: Job, frozen: bool) -> None:
    host, port = job.host()
    script = (
        "import os, signal\n"
        "from torch.distributed import TCPStore\n"
        "from s3prl_mtl.distributed import health\n"
        "health.ANSWER_SECONDS = 1.0\n"
        f"store = TCPStore('127.0.0.1', {port}, is_master=False)\n"
        "health.Watch(store, 0, 2, heartbeat_seconds=1e-4).start()\n"
        "store.wait(['heartbeat/0'])\n"
        f"{'' if frozen else '# '}os.kill({host.pid}, signal.SIGSTOP)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    assert (ended.returncode, ended.stderr) == (0, "")
