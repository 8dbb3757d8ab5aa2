"""Every rank beats through the rendezvous store, so that one that stalls or dies has a name."""

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

from s3prl_mtl.distributed.peer_status import Heartbeat, PeerStatus, spoken

logger = logging.getLogger(__name__)

SILENT_BEATS = 3
"""A rank that misses so many beats is silent: killed, frozen, or cut off."""

ANSWER_SECONDS = 5.0
"""How long the store may take; it is one small message over one connection."""

RETRY_SECONDS = 60.0
"""Pause before a lost store is tried again, doubled each time: torch prints a page per try."""


class Activity(NamedTuple):
    """What this rank is busy with, and since when by its own monotonic clock."""

    what: str
    waiting: bool
    since: float


class Watch:
    """A thread that tells the other ranks what this one does, and finds out the same of them.

    Args:
        store: of the rendezvous, the same for all ranks. The watch makes a connection of its own
            to it. Its keys must be fresh for each start of the ranks: torchrun's store outlives
            a restart, with all that the ranks before have left there; so give it a prefix.
        rank: this one.
        world_size: how many ranks there are, at least 2.
        beat_seconds: between two signs of life.
        stall_seconds: how long this rank waits for others before it logs who they are, and again
            each time that so much has passed.

    The thread alone touches the store: a machine that vanishes without closing its connections
    would block whoever reads from it for good, and that must not be the training.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        beat_seconds: float = 2.0,
        stall_seconds: float = 60.0,
    ) -> None:
        self.step = 0
        """The step that training is at; the runner sets it."""
        self.rank = rank
        self._store = store
        self._others = [other for other in range(world_size) if other != rank]
        self._beat_seconds = beat_seconds
        self._stall_seconds = stall_seconds
        self._answer_seconds = max(ANSWER_SECONDS, SILENT_BEATS * beat_seconds)
        self._host = socket.gethostname()
        self._activity = Activity("starting", False, time.monotonic())
        self._failed: str | None = None
        self._origin = False
        self._own_stop: str | None = None
        self._others_stop: str | None = None
        self._stop_told = False
        self._sightings: dict[int, PeerStatus] = {}
        self._blaming = False
        self._alive: set[int] = set()
        self._mute: set[int] = set()
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
        """Connect to the store and begin to beat."""
        self._store = self._connect()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        # A daemon thread that is inside torch when the interpreter ends would abort the process.
        atexit.register(self.close)

    def close(self) -> None:
        """Tell the others that this rank leaves, and end the thread. Closing twice is harmless."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(self._answer_seconds)
        atexit.unregister(self.close)

    @contextmanager
    def doing(self, what: str, waiting: bool = False) -> Iterator[None]:
        """What this rank is busy with inside the context. Cheap; for the main thread only.

        Args:
            what: goes on after "it has been": "reading a batch of asr", "in the backward pass".
            waiting: it waits for the other ranks. If this takes long, a warning names those who
                do not wait as well.
        """
        before = self._activity
        self._activity = Activity(what, waiting, time.monotonic())
        try:
            yield
        finally:
            self._activity = before

    def ask_to_stop(self, reason: str) -> None:
        """Ask every rank to stop, with the next beat. Safe inside a signal handler."""
        if self._own_stop is None:
            self._own_stop = reason

    @property
    def stop_asked(self) -> str | None:
        """The reason for which this rank or, as of about a beat ago, another asked to stop."""
        return self._own_stop or self._others_stop

    def fail(self, reason: str) -> None:
        """Tell the others that this rank ends, and why; returns when the store has it.

        After `blame` it changes nothing: this rank then fails because of another.
        """
        if self._failed is None:
            self._failed = reason
            self._origin = True
        self._await_beat(at_once=True)

    def blame(self, error: BaseException) -> str:
        """Find who made a collective fail; takes about three beats.

        Args:
            error: what the collective raised.

        Returns:
            A sentence for each culprit: the ranks that failed for a reason of their own; if there
            are none, those that fell silent; if none did, those that do not wait for the others.
        """
        if self._failed is None:
            # Now, and not at the end: the others must not take this rank for the culprit.
            self._failed = "another rank failed"
        self._alive = set()
        self._mute = set()
        self._blaming = True
        try:
            return self._find_culprits(error)
        finally:
            self._blaming = False

    @property
    def speaker(self) -> int:
        """After :meth:`blame`: the lowest rank that can tell the user, neither gone nor stalled."""
        return min(({self.rank} | self._alive) - self._mute)

    def _find_culprits(self, error: BaseException) -> str:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        unknown = f"One of the others failed: {line.rstrip('.')}."
        if self._closing or self._thread is None:
            return unknown
        began = time.monotonic()
        if not self._await_beat(at_once=True):
            return self._rendezvous_is_gone()
        first = {rank: seen.counter for rank, seen in self._sightings.items()}
        rounds = 0
        while rounds < SILENT_BEATS or time.monotonic() - began < SILENT_BEATS * self._beat_seconds:
            if not self._await_beat():
                return self._rendezvous_is_gone()
            rounds += 1
            others = dict(self._sightings)
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
        culprits = origins or silent or busy
        self._mute = {seen.rank for seen in ([] if origins else culprits)}
        return " ".join(seen.culprit(seen in silent) for seen in culprits) or unknown

    def _rendezvous_is_gone(self) -> str:
        reason = self._lost or "its store does not answer"
        return (
            "The machine that hosts the rendezvous is gone, or cannot be reached: "
            f"{reason.rstrip('.')}."
        )

    def _await_beat(self, at_once: bool = False) -> bool:
        """Wait for a whole beat from now on; whether it came, and reached the store."""
        if self._thread is None or not self._thread.is_alive():
            return False
        with self._beaten:
            target = self._begun + 1
            if at_once:
                self._wake.set()
            came = self._beaten.wait_for(
                lambda: self._done >= target, self._answer_seconds + self._beat_seconds
            )
        return came and self._lost is None

    # What follows runs in the thread.

    def _run(self) -> None:
        while not self._closing:
            self._beat()
            self._wake.wait(self._beat_seconds)
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
                logger.warning("Rank %d reaches the store of the rendezvous again.", self.rank)
        except (RuntimeError, OSError, ValueError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            if self._lost is None:
                logger.warning(
                    "Rank %d has lost the store of the rendezvous (%s): a rank that stalls "
                    "cannot be named.",
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
        """A connection of this watch's own: a client that waits for a key blocks all its users."""
        store: Store = self._store.clone()  # type: ignore[attr-defined]  # torch's stub lacks it
        store.set_timeout(timedelta(seconds=self._answer_seconds))
        return store

    def _exchange(self) -> None:
        self._tell()
        self._hear_of_stop()
        if self._blaming:
            self._look()
        else:
            self._warn_of_a_long_wait()

    def _tell(self) -> None:
        activity = self._activity
        beat = Heartbeat(
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
        self._store.set(_key(self.rank), beat.to_json())

    def _hear_of_stop(self) -> None:
        # `set` does not wait for an answer, `check` does: after it, the store has the beat.
        if self._own_stop is not None and not self._stop_told:
            self._store.set("stop", self._own_stop)
            self._stop_told = True
        if self._store.check(["stop"]) and self.stop_asked is None:
            self._others_stop = self._store.get("stop").decode()

    def _look(self) -> None:
        """Read the beats of the others."""
        now = time.monotonic()
        for rank in self._others:
            self._sightings.setdefault(rank, PeerStatus(rank, None, now))
        # multi_get would wait for a key that is not there yet.
        present = [
            rank
            for rank in self._others
            if self._sightings[rank].beat is not None or self._store.check([_key(rank)])
        ]
        texts = self._store.multi_get([_key(rank) for rank in present]) if present else []
        now = time.monotonic()
        for rank, text in zip(present, texts, strict=True):
            beat = Heartbeat.from_json(text)
            if beat.counter != self._sightings[rank].counter:
                self._sightings[rank] = PeerStatus(rank, beat, now)

    def _warn_of_a_long_wait(self) -> None:
        activity = self._activity
        lasted = time.monotonic() - activity.since
        # Before the warning is due: silence shows only in several looks.
        looks_after = min(self._stall_seconds / 2, SILENT_BEATS * self._beat_seconds)
        if not activity.waiting or lasted < looks_after:
            return
        self._look()
        times = int(lasted // self._stall_seconds)
        last, warned = self._warned
        if times <= (warned if last is activity else 0):
            return
        self._warned = (activity, times)
        sentences = []
        for seen in self._sightings.values():
            is_silent = seen.silent_seconds > SILENT_BEATS * self._beat_seconds
            if is_silent or seen.beat is None or seen.has_failed or seen.is_busy:
                sentences.append(seen.waited_for(spoken(lasted), is_silent))
        if sentences:
            logger.warning("%s", " ".join(sentences))
            return
        logger.warning(
            "Rank %d has been %s for %s, and all the others wait as well: the network between "
            "them fails, or they wait for different things.",
            self.rank,
            activity.what,
            spoken(lasted),
        )


def _key(rank: int) -> str:
    return f"beat/{rank}"
