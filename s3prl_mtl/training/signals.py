"""A scheduler's wish that the run should end: SIGTERM and SIGUSR1."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop: it was saved, or there was nothing to save."""


class StopSignals:
    """While it is entered, SIGTERM and SIGUSR1 end the run when the run allows it.

    Within :meth:`deferred` a signal is only noted, and the run saves itself and ends when it can.
    Elsewhere it raises :class:`Stopped` at once. In another thread than the main one, where Python
    can set no handlers, entering changes nothing.

    Example::

        with StopSignals() as stop:
            build()
            while training:
                with stop.deferred():
                    step()
                    if stop.requested:
                        save()

    Args:
        on_request: called once, with the signal's name, when the first signal comes. It runs
            inside the handler, between two bytecodes of anything: it must neither wait for a lock
            that the main thread may hold nor raise.
    """

    def __init__(self, on_request: Callable[[str], None] | None = None) -> None:
        self.on_request = on_request
        self.requested: str | None = None
        """Name of the first signal that came."""
        self.was_deferred = False
        """Whether the run has come to where a signal has to wait: it has begun to train."""
        self._deferring = 0
        self._raised = False
        self._owner: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._owner = os.getpid()
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._owner != os.getpid():
            return
        for number, previous in self._previous.items():
            # None stands for a handler that was not set from Python and cannot be set again.
            back = signal.SIG_DFL if previous is None else previous
            # A run that was asked to stop is about to end in order: a second signal, as schedulers
            # send them, must not make a failure of that.
            signal.signal(number, back if self.requested is None else signal.SIG_IGN)
        self._previous.clear()
        self._owner = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal that comes inside only sets `requested`. It may be entered within itself.

        Raises:
            Stopped: on entering the outermost one, if a signal has come before.
        """
        self._deferring += 1
        try:
            if self.requested is not None and self._deferring == 1:
                self._raised = True
                raise Stopped(self._nothing_to_save())
            self.was_deferred = True
            yield
        finally:
            self._deferring -= 1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if os.getpid() != self._owner:
            self._handle_in_child(number)
            return
        if self.requested is None:
            self.requested = name
            if self.on_request is not None:
                self.on_request(name)
        # Once: a second signal must not break into the tidying that the first one led to.
        if self._deferring == 0 and not self._raised:
            self._raised = True
            raise Stopped(self._nothing_to_save())

    def _nothing_to_save(self) -> str:
        return (
            f"The run was asked to stop ({self.requested}), "
            "and nothing was trained since it was last saved."
        )

    @staticmethod
    def _handle_in_child(number: int) -> None:
        """A forked process has the handler too, and no run to save.

        SIGTERM ends it as if there were no handler, for its parent may wait for that; the
        scheduler's SIGUSR1 is not meant for it.
        """
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
