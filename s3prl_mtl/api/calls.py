"""Wrap the functions of commands for Python: checked arguments, restored signal handlers."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import threading
import types
import typing
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO, Literal, ParamSpec, TypeVar

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.fileio.paths import expand_home
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
    """Wrap the function of a command for programs that continue after the call.

    An unknown argument is a `UserError` with the nearest name, and so is a value of another type
    than the annotation has; `~` is expanded in paths, and the process has the signal handlers of
    before at the end. The command line calls the function itself (`__wrapped__`): its process ends,
    and keeps ignoring further signals of a scheduler.
    """
    signature = inspect.signature(function)
    names = list(signature.parameters)

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
        _check_types(function, signature.bind_partial(*args, **kwargs).arguments)
        home = {name: expand_home(value) for name, value in kwargs.items()}
        with _handlers_put_back():
            return function(*map(expand_home, args), **home)

    return call


ACCEPTED: dict[Any, Any] = {int: Integral, float: Real, abc.Sequence: abc.Iterable}
"""More than an annotation says: numbers of numpy, any iterable in place of a sequence."""


def _check_types(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check the outer type of each argument, such as a list but not its entries.

    Raises:
        UserError: a value is not of a type that the annotation names.
    """
    # Not those of the result: its class may not be imported yet.
    written = {name: function.__annotations__[name] for name in arguments}
    hints = typing.get_type_hints(
        types.SimpleNamespace(__annotations__=written), function.__globals__
    )
    for name, value in arguments.items():
        if not any(_is_of(value, kind) for kind in _alternatives(hints[name])):
            raise UserError(
                f"{name}={value!r} has the type {type(value).__name__}.",
                where=f"{function.__name__}()",
                fix=f"Its type is {_shown(hints[name])}.",
                code="wrong-type",
            )


def _shown(hint: Any) -> str:
    """A type as users know it, without the names of aliases and of modules."""
    return inspect.formatannotation(hint).replace("collections.abc.", "")


def _alternatives(hint: Any) -> Iterator[Any]:
    """The types of a union."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        for entry in typing.get_args(hint):
            yield from _alternatives(entry)
    else:
        yield hint


def _is_of(value: Any, hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    if kind is Any:
        return True
    if kind is Literal:  # the function names the choices
        return isinstance(value, str)
    if kind is BinaryIO:
        return hasattr(value, "read")
    if isinstance(value, str | Mapping) and kind is abc.Sequence:
        return False
    return isinstance(value, ACCEPTED.get(kind, kind))


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


def output_folder(path: PathLike, where: str) -> Path:
    """The absolute path of a folder that may not exist yet.

    Args:
        path: of the folder.
        where: source of the path, for errors.

    Raises:
        UserError: it, or a folder above it, is a file.
    """
    folder = Path(os.path.abspath(path))
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UserError(
                f"{place} is not a folder.",
                where=f"{where} {path}",
                fix="Give a folder, which need not exist yet.",
                code="invalid-value",
            )
    return folder


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
