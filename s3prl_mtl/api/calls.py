"""Functions that may be called from a notebook: named mistakes, signal handlers put back."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.registry.task_names import split_specs
from s3prl_mtl.training.signals import EXIT_SIGNALS, STOP_SIGNALS

P = ParamSpec("P")
R = TypeVar("R")

PathLike = str | os.PathLike[str]
Words = str | Sequence[str]
"""Names: a list, or the text of the command line with commas."""
Override = str | Mapping[str, Any]
"""Settings by dotted key, or the text of `-o`."""


def callable_from_python(function: Callable[P, R]) -> Callable[P, R]:
    """Make the function of a command fit for a program that goes on after it.

    An unknown argument is a `UserError` with the nearest name, `~` is expanded in paths, and the
    process has the signal handlers of before at the end. The command line calls the function
    itself (`__wrapped__`): its process ends, and keeps ignoring further signals of a scheduler.
    """
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in names:
                raise UserError(
                    f"Unknown argument {name!r}.",
                    where=f"{function.__name__}()",
                    fix=nearest(name, names),
                    code="unknown-key",
                )
        home = {name: expanded(value) for name, value in kwargs.items()}
        with _handlers_put_back():
            return function(*map(expanded, args), **home)

    return call


@contextmanager
def _handlers_put_back() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set handlers
        return
    before = {number: signal.getsignal(number) for number in {*STOP_SIGNALS, *EXIT_SIGNALS}}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def expanded(value: Any) -> Any:
    """A path, or each of a list, with `~` expanded; anything else unchanged."""
    if isinstance(value, list):
        return [expanded(entry) for entry in value]
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(value) if isinstance(value, str) else value


def comma_separated(words: Any) -> str | None:
    """Names or numbers as the text of a flag; None stays None."""
    if words is None or isinstance(words, str):
        return words
    return ",".join(map(str, words)) if isinstance(words, Sequence) else str(words)


def split_tasks(tasks: Words, flag: str = "-d") -> list[str]:
    """The task specs of a list, or of the text of a flag.

    Raises:
        UserError: there is none.
    """
    return split_specs(comma_separated(tasks) or "", flag)


def listed(value: Any) -> list[Any]:
    """One value or several as a new list; None as an empty one."""
    if value is None:
        return []
    return [value] if isinstance(value, str | os.PathLike | Mapping) else list(value)
