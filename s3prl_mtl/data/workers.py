"""Signal handling for the worker processes of loaders."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
            # stays pending for the thread that waits for it.
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
def remove_sigchld_handler() -> Iterator[None]:
    """Remove on exit the SIGCHLD handler that torch installs when it starts loader workers.

    When a worker dies, it raises RuntimeError anywhere in the main thread, even within an
    optimizer step. Without it, the loader reports the death when it waits for a batch.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", "").startswith("torch.utils.data"):
        before = signal.SIG_DFL
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
