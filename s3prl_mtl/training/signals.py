"""Graceful shutdown of runs and exports on signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that end a run in order: those of schedulers, and Ctrl-C."""

EXIT_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a command without a clean-up by Python."""


class Stopped(KeyboardInterrupt):
    """A signal stopped the run: it was saved, or there was nothing to save."""

    signal: str | None = None
    """Name of the signal that this process received; None if another rank received it."""
    remedy = "Resume with -a."


class StopSignals:
    """Context in which SIGTERM, SIGUSR1 and Ctrl-C end a run where the run allows it.

    Within :meth:`deferred` a signal only sets `requested`; the run saves itself and ends when it
    can. Elsewhere a signal raises :class:`Stopped` at once. A second Ctrl-C raises
    KeyboardInterrupt anywhere. Outside the main thread, where Python cannot set handlers, the
    context has no effect.

    Example::

        with StopSignals() as stop:
            build()
            while training:
                with stop.deferred():
                    step()
                    if stop.requested:
                        save()

    Args:
        on_request: called once, with the name of the first signal. It runs inside the handler,
            between any two bytecodes: it must not raise, nor wait for a lock that the main thread
            may hold.
    """

    def __init__(self, on_request: Callable[[str], None] | None = None) -> None:
        self.on_request = on_request
        self.requested: str | None = None
        """Name of the first signal."""
        self.was_deferred = False
        """Whether `deferred` was ever entered: the training has begun."""
        self._deferring = 0
        self._raised = False
        # torchrun passes Ctrl-C on to its processes, which the terminal has sent it too.
        self._spare_interrupts = 2 if "TORCHELASTIC_RUN_ID" in os.environ else 1
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
        if isinstance(error, Stopped):
            error.signal = self.requested
        for number, previous in self._previous.items():
            # None is a handler that was not set from Python and cannot be restored.
            back = signal.SIG_DFL if previous is None else previous
            # After a first signal the process ends cleanly: a second one, as schedulers send, must
            # not turn this into a failure.
            keep = self.requested is None or number == signal.SIGINT
            signal.signal(number, back if keep else signal.SIG_IGN)
        self._previous.clear()
        self._owner = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A context in which a signal only sets `requested`. Contexts may be nested.

        Raises:
            Stopped: on entering the outermost context, if a signal came before.
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
        if number == signal.SIGINT:
            self._spare_interrupts -= 1
            if self._spare_interrupts < 0:
                raise KeyboardInterrupt
        # Once: a second signal must not interrupt the clean-up after the first.
        if self._deferring == 0 and not self._raised:
            self._raised = True
            raise Stopped(self._nothing_to_save())

    def _nothing_to_save(self) -> str:
        return f"The run stopped on {self.requested}; no step was taken since it was last saved."

    @staticmethod
    def _handle_in_child(number: int) -> None:
        """A forked process inherits the handler, but has no run to save.

        SIGTERM ends it as without a handler, since its parent may wait for that; SIGUSR1 of a
        scheduler and Ctrl-C are for the parent only.
        """
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP raise SystemExit, so that `finally` blocks run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        for other in EXIT_SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    # A signal that the process was started to ignore, as by nohup, stays ignored.
    heard = [number for number in EXIT_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
