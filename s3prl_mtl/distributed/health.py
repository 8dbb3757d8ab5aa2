"""Heartbeats of the ranks through the rendezvous store, to name a rank that stalls or dies."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from torch.distributed import Store

from s3prl_mtl.distributed.peer_status import Fault, Heartbeat, PeerStatus, format_seconds

logger = logging.getLogger(__name__)

SILENT_HEARTBEATS = 3
"""Missed heartbeats after which a rank is silent: killed, frozen or disconnected."""

MAXIMUM_STALL_SECONDS = 60.0
"""Longest wait of a rank for the others before it logs their names."""

ANSWER_SECONDS = 5.0
"""Timeout of the store for one small message over one connection."""

RETRY_SECONDS = 60.0
"""Pause before a lost store is tried again, doubled each time: torch prints a page per attempt."""


def watch_intervals(timeout_seconds: float) -> tuple[float, float]:
    """Seconds between heartbeats, and of waiting before a stalled rank is named.

    A stalled rank is named well before the others stop waiting for it, after `timeout_seconds`.
    """
    stall_seconds = min(MAXIMUM_STALL_SECONDS, timeout_seconds / 3)
    return min(2.0, stall_seconds / 6), stall_seconds


class Activity(NamedTuple):
    """The activity of this rank, with its start by the monotonic clock."""

    what: str
    waiting: bool
    since: float


class Watch:
    """A thread that sends the activity of this rank to the others, and reads theirs.

    Args:
        store: of the rendezvous, the same for all ranks. The watch makes a connection of its own
            to it. Its keys must be new for each start of the ranks, since torchrun's store outlives
            a restart: give it a prefix.
        rank: this one.
        world_size: how many ranks there are, at least 2.
        heartbeat_seconds: between two heartbeats.
        stall_seconds: how long this rank waits for others before it logs which ones, and again
            after each further interval of this length.

    Only the thread uses the store: a machine that vanishes without closing its connections blocks
    every reader forever, and that must not be the training.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        heartbeat_seconds: float = 2.0,
        stall_seconds: float = MAXIMUM_STALL_SECONDS,
    ) -> None:
        self.step = 0
        """The current step of the training; the runner sets it."""
        self.rank = rank
        self._store = store
        self._others = [other for other in range(world_size) if other != rank]
        self._heartbeat_seconds = heartbeat_seconds
        self._stall_seconds = stall_seconds
        self._answer_seconds = max(ANSWER_SECONDS, SILENT_HEARTBEATS * heartbeat_seconds)
        self._host = socket.gethostname()
        self._activity = Activity("starting", False, time.monotonic())
        self._failed: str | None = None
        self._origin = False
        self._own_stop: str | None = None
        self._others_stop: str | None = None
        self._stop_told = False
        self._peers: dict[int, PeerStatus] = {}
        self._finding_fault = False
        self._alive: set[int] = set()
        self._unresponsive: set[int] = set()
        self._warned: tuple[Activity | None, int] = (None, 0)
        self._lost: str | None = None
        self._retry_at = 0.0
        self._retry_seconds = RETRY_SECONDS
        self._thread: threading.Thread | None = None
        self._closing = False
        self._wake = threading.Event()
        self._beaten = threading.Condition()
        self._begun = 0
        self._done = 0

    def start(self) -> None:
        """Connect to the store and start to send heartbeats."""
        self._store = self._connect()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        # A daemon thread that is inside torch when the interpreter ends would abort the process.
        atexit.register(self.close)

    def close(self) -> None:
        """Tell the others that this rank leaves, and end the thread. Idempotent."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(self._answer_seconds)
        atexit.unregister(self.close)

    @contextmanager
    def doing(self, what: str, waiting: bool = False) -> Iterator[None]:
        """Set the activity of this rank inside the context. Cheap; for the main thread only.

        Args:
            what: completes "it has been": "reading a batch of asr", "in the backward pass".
            waiting: this rank waits for the others. If this takes long, a warning names the ranks
                that do not wait too.
        """
        before = self._activity
        self._activity = Activity(what, waiting, time.monotonic())
        try:
            yield
        finally:
            self._activity = before

    def ask_to_stop(self, reason: str) -> None:
        """Ask every rank to stop, with the next heartbeat. Safe inside a signal handler."""
        if self._own_stop is None:
            self._own_stop = reason

    @property
    def stop_asked(self) -> str | None:
        """The reason of a request to stop, by this rank or, a heartbeat later, by another."""
        return self._own_stop or self._others_stop

    def fail(self, reason: str) -> None:
        """Tell the others the error for which this rank ends; returns when the store has it.

        After `find_fault` this has no effect: this rank then fails because of another.
        """
        if self._failed is None:
            self._failed = reason
            self._origin = True
        self._await_beat(at_once=True)

    def find_fault(self, error: BaseException) -> Fault:
        """Find the ranks that made a collective operation fail; takes about three heartbeats.

        Args:
            error: of the operation.

        Returns:
            the ranks that failed with an error of their own; without any those that are silent;
            without any those that do not wait for the others.
        """
        if self._failed is None:
            # Now, not at the end: the others must not find this rank at fault.
            self._failed = "another rank failed"
        self._alive = set()
        self._unresponsive = set()
        self._finding_fault = True
        try:
            return self._ranks_at_fault(error)
        finally:
            self._finding_fault = False

    @property
    def speaker(self) -> int:
        """After :meth:`find_fault`: the lowest rank that is able to show the error."""
        return min(({self.rank} | self._alive) - self._unresponsive)

    def _ranks_at_fault(self, error: BaseException) -> Fault:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        unknown = Fault(f"Another rank failed: {line.rstrip('.')}.", {})
        if self._closing or self._thread is None:
            return unknown
        began = time.monotonic()
        if not self._await_beat(at_once=True):
            return self._store_is_lost()
        first = {rank: seen.counter for rank, seen in self._peers.items()}
        rounds = 0
        while (
            rounds < SILENT_HEARTBEATS
            or time.monotonic() - began < SILENT_HEARTBEATS * self._heartbeat_seconds
        ):
            if not self._await_beat():
                return self._store_is_lost()
            rounds += 1
            others = dict(self._peers)
            origins = [seen for seen in others.values() if seen.is_origin]
            self._alive = {
                rank
                for rank, seen in others.items()
                if seen.counter != first[rank] or seen.has_failed
            }
            if origins and len(self._alive) == len(others):
                break
        silent = [seen for rank, seen in others.items() if rank not in self._alive]
        busy = [seen for seen in others.values() if seen.is_busy]
        faulty = origins or silent or busy
        self._unresponsive = {seen.rank for seen in ([] if origins else faulty)}
        if not faulty:
            return unknown
        return Fault(
            " ".join(f"R{seen.name[1:]} {seen.describe(seen in silent)}." for seen in faulty),
            {seen.rank: seen.state(seen in silent) for seen in faulty},
        )

    def _store_is_lost(self) -> Fault:
        reason = self._lost or "its store does not answer"
        return Fault(
            "The machine that hosts the rendezvous is gone, or cannot be reached: "
            f"{reason.rstrip('.')}.",
            {},
        )

    def _await_beat(self, at_once: bool = False) -> bool:
        """Wait for a complete heartbeat; whether it came and reached the store."""
        if self._thread is None or not self._thread.is_alive():
            return False
        with self._beaten:
            target = self._begun + 1
            if at_once:
                self._wake.set()
            came = self._beaten.wait_for(
                lambda: self._done >= target, self._answer_seconds + self._heartbeat_seconds
            )
        return came and self._lost is None

    # The methods below run in the thread.

    def _run(self) -> None:
        while not self._closing:
            self._beat()
            self._wake.wait(self._heartbeat_seconds)
            self._wake.clear()
        self._beat()

    def _beat(self) -> None:
        with self._beaten:
            self._begun += 1
        try:
            if self._lost is None:
                self._exchange()
            elif time.monotonic() >= self._retry_at and not self._closing:
                self._store = self._connect()
                self._exchange()
                self._lost = None
                logger.warning(
                    "Rank %d is connected to the store of the rendezvous again.", self.rank
                )
        except (RuntimeError, OSError, ValueError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            if self._lost is None:
                logger.warning(
                    "Rank %d lost the store of the rendezvous (%s): a rank that stalls cannot be "
                    "named.",
                    self.rank,
                    line,
                )
                self._retry_seconds = RETRY_SECONDS
            self._lost = line
            self._retry_at = time.monotonic() + self._retry_seconds
            self._retry_seconds *= 2
        finally:
            with self._beaten:
                self._done = self._begun
                self._beaten.notify_all()

    def _connect(self) -> Store:
        """A separate connection: a client that waits for a key blocks all its users."""
        store: Store = self._store.clone()  # type: ignore[attr-defined]  # torch's stub lacks it
        store.set_timeout(timedelta(seconds=self._answer_seconds))
        return store

    def _exchange(self) -> None:
        self._tell()
        self._hear_of_stop()
        if self._finding_fault:
            self._look()
        else:
            self._warn_of_a_long_wait()

    def _tell(self) -> None:
        activity = self._activity
        heartbeat = Heartbeat(
            counter=self._begun,
            step=self.step,
            what=activity.what,
            since=time.monotonic() - activity.since,
            waiting=activity.waiting,
            host=self._host,
            pid=os.getpid(),
            failed=self._failed,
            origin=self._origin,
            left=self._closing,
        )
        self._store.set(_key(self.rank), heartbeat.to_json())

    def _hear_of_stop(self) -> None:
        # `set` does not wait for an answer, `check` does: after it, the store has the heartbeat.
        if self._own_stop is not None and not self._stop_told:
            self._store.set("stop", self._own_stop)
            self._stop_told = True
        if self._store.check(["stop"]) and self.stop_asked is None:
            self._others_stop = self._store.get("stop").decode()

    def _look(self) -> None:
        """Read the heartbeats of the others."""
        now = time.monotonic()
        for rank in self._others:
            self._peers.setdefault(rank, PeerStatus(rank, None, now))
        # multi_get would wait for a key that does not exist yet.
        present = [
            rank
            for rank in self._others
            if self._peers[rank].heartbeat is not None or self._store.check([_key(rank)])
        ]
        texts = self._store.multi_get([_key(rank) for rank in present]) if present else []
        now = time.monotonic()
        for rank, text in zip(present, texts, strict=True):
            heartbeat = Heartbeat.from_json(text)
            if heartbeat.counter != self._peers[rank].counter:
                self._peers[rank] = PeerStatus(rank, heartbeat, now)

    def _warn_of_a_long_wait(self) -> None:
        activity = self._activity
        lasted = time.monotonic() - activity.since
        # Before the warning is due: only several looks show that a rank is silent.
        looks_after = min(self._stall_seconds / 2, SILENT_HEARTBEATS * self._heartbeat_seconds)
        if not activity.waiting or lasted < looks_after:
            return
        self._look()
        times = int(lasted // self._stall_seconds)
        last, warned = self._warned
        if times <= (warned if last is activity else 0):
            return
        self._warned = (activity, times)
        wait = format_seconds(lasted)
        nobody = True
        for seen in self._peers.values():
            is_silent = seen.silent_seconds > SILENT_HEARTBEATS * self._heartbeat_seconds
            if is_silent or seen.heartbeat is None or seen.has_failed or seen.is_busy:
                nobody = False
                logger.warning(
                    "Waiting for %s for %s: it %s.", seen.name, wait, seen.describe(is_silent)
                )
        if nobody:
            logger.warning(
                "Rank %d has been %s for %s, and all other ranks wait too: the network between "
                "them fails, or they wait for different operations.",
                *(self.rank, activity.what, wait),
            )


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"
