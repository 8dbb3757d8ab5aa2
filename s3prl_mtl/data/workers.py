"""Number, signals and deaths of the worker processes of loaders."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from s3prl_mtl.errors import UserError

logger = logging.getLogger(__name__)

MAXIMUM_WORKER_DEATHS = 3
"""Consecutive deaths of loader workers, without a batch in between, that abort the run."""

_WORKER_DEATH = re.compile(r"DataLoader worker \(pid|Pin memory thread exited unexpectedly")

MAXIMUM_DEFAULT_WORKERS = 4

SECONDS_AFTER_SIGTERM = 30
"""Seconds that a loader worker continues; schedulers commonly kill after 30."""


class StopSignalGuard:
    """A `worker_init_fn` that keeps loader workers alive through a graceful shutdown.

    Schedulers signal all processes of a job. The run then finishes its step, which needs batches.
    So workers ignore SIGUSR1 and SIGINT, and exit `SECONDS_AFTER_SIGTERM` after a SIGTERM, or at
    once if the SIGTERM comes from their parent. (On macOS, where Python cannot tell the sender,
    SIGTERM keeps its default action.)

    Args:
        init: another `worker_init_fn` to call.
    """

    def __init__(self, init: Callable[[int], object] | None = None) -> None:
        self.init: Callable[[int], object] | None = init

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):
            # A handler does not learn the sender. All threads inherit the blocked signal, so it
            # stays pending for the thread that waits for it. Threads that already exist have it
            # from `block_sigterm`.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_wait_for_sigterm, daemon=True).start()
        if self.init is not None:
            self.init(worker)


def _wait_for_sigterm() -> None:
    parent = multiprocessing.parent_process()
    counting = False
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if parent is not None and sender == parent.pid:
            # Like torch's handler: do not keep an exiting parent waiting.
            os._exit(0)
        if not counting:
            # Once: a second signal must not postpone the exit.
            signal.alarm(SECONDS_AFTER_SIGTERM)
            counting = True


@contextmanager
def block_sigterm() -> Iterator[None]:
    """Block SIGTERM while torch starts loader workers with a :class:`StopSignalGuard`.

    Some libraries, such as exporters of metrics, start a thread in each forked process before the
    guard is called. Such a thread inherits the blocked signal too; otherwise SIGTERM would reach
    it and end the worker.
    """
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def default_workers(ranks: int = 1) -> int:
    """Loader workers for each of some ranks on this machine: one for each core but one, 1 to 4."""
    affinity: Callable[[int], Collection[int]] | None = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min(MAXIMUM_DEFAULT_WORKERS, cores // ranks - 1))


class WorkerDeaths:
    """Consecutive deaths of the workers of a loader.

    Args:
        reading: what they read, for messages.
        setting: the setting with their number, for the error.
    """

    def __init__(self, reading: str, setting: str) -> None:
        self.reading = reading
        self.setting = setting
        self.count = 0
        """Deaths since the last batch; to be set to 0 with each."""

    def add(self, error: Exception, num_workers: int) -> None:
        """Count and log a death; the caller replaces the worker.

        Args:
            error: raised by a loader.
            num_workers: of the loader.

        Raises:
            Exception: the given one, if it does not tell of a death.
            UserError: too many deaths.
        """
        if not _is_worker_death(error, num_workers):
            raise error
        self.count += 1
        cause = " ".join(str(error).split()) or type(error).__name__
        if self.count >= MAXIMUM_WORKER_DEATHS:
            raise UserError(
                f"{self.reading}: loader workers died {self.count} times in a row: "
                f"{cause.rstrip('.')}.",
                where=self.setting,
                fix="The usual cause is too little memory: request more, reduce num_workers, or "
                "enlarge /dev/shm.",
                code="worker-died",
            ) from error
        logger.warning(
            "%s: a loader worker died (%s). Replacing it; no batch is lost.", self.reading, cause
        )


def _is_worker_death(error: Exception, num_workers: int) -> bool:
    if isinstance(error, RuntimeError):
        return _WORKER_DEATH.match(str(error)) is not None
    # Fetching a batch from a dead worker fails with these errors. The message of an error that
    # a worker itself raised begins with "Caught".
    lost = isinstance(error, ConnectionError | FileNotFoundError | EOFError)
    return lost and num_workers > 0 and not str(error).startswith("Caught ")


@contextmanager
def worker_deaths_raise(current: Callable[[], Any]) -> Iterator[None]:
    """Raise RuntimeError in this context, and only here, where a loader worker has died.

    A worker that is killed while it sends a batch leaves part of it in the pipe, and DataLoader
    would wait for the rest for ever: the signal of the death has to interrupt it. torch installs
    such a handler with the first loader and leaves it there, where it would raise even within an
    optimizer step; it is removed on exit.

    Outside the main thread, where Python cannot set handlers, only earlier deaths are noticed.

    Args:
        current: the iterator of a DataLoader that is read, or anything else.
    """
    raised = False

    def check(*_: object) -> None:
        nonlocal raised
        for worker in () if raised else getattr(current(), "_workers", ()):
            if worker.exitcode:  # neither running nor ended by itself
                raised = True  # once: another death must not interrupt the clean-up
                reason = exit_summary(worker.exitcode)
                raise RuntimeError(f"DataLoader worker (pid {worker.pid}): {reason}")

    if threading.current_thread() is not threading.main_thread():
        check()
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", "").startswith("torch.utils.data"):
        before = signal.SIG_DFL
    try:
        signal.signal(signal.SIGCHLD, check)
        check()
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def exit_summary(code: int) -> str:
    """The exit code of a process in words."""
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
