"""The terminal: shared consoles, so that progress bars and log lines do not collide."""

from __future__ import annotations

import logging
import re
import textwrap
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

logger = logging.getLogger(__name__)

OUTPUT = Console()
MESSAGES = Console(stderr=True)


_COLOURS = {logging.DEBUG: "dim", logging.WARNING: "yellow", logging.ERROR: "red"}


class TerminalHandler(logging.Handler):
    """Print records with time and colour, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = f"{time.strftime('%X', time.localtime(record.created))} {self.format(record)}"
            show_message(text, _COLOURS.get(record.levelno, ""))
        except Exception:
            self.handleError(record)


def show_message(text: str, style: str = "") -> None:
    """Print a message to standard error, wrapped between words on a terminal.

    A path that is longer than a line stays in one piece, so that it can be copied.

    Args:
        text: the message.
        style: of rich.
    """
    if MESSAGES.is_terminal:
        lines = text.splitlines() or [""]
        text = "\n".join(
            textwrap.fill(
                line,
                MESSAGES.width,
                break_long_words=False,
                break_on_hyphens=False,
                replace_whitespace=False,
                drop_whitespace=True,
            )
            for line in lines
        )
    MESSAGES.print(Text(text, style=style), soft_wrap=True)


def show_log(verbose: bool, on_terminal: bool = True) -> None:
    """Send the log to standard error: with colours on a terminal, plain lines elsewhere.

    Args:
        verbose: include debug messages.
        on_terminal: False for all but one of several processes. They log to files and show errors
            only, which may occur before the file is open.
    """
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    handler: logging.Handler
    if not on_terminal:
        handler = logging.StreamHandler()
        handler.setLevel(logging.ERROR)
    elif MESSAGES.is_terminal:
        handler = TerminalHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.handlers = [handler]
    for chatty in ("matplotlib", "urllib3", "filelock", "fsspec", "numba"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def log_warnings_once() -> None:
    """Log a warning of a library, such as torch's of loader workers, once in a process.

    Warnings that differ only in numbers count as one, wherever they are raised.
    """
    seen = set()

    def log(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        key = (category, re.sub(r"\d+", "0", str(message)))
        if key not in seen:
            seen.add(key)
            logger.warning("%s: %s (%s, line %d)", category.__name__, message, filename, lineno)

    warnings.showwarning = log


@contextmanager
def log_to_file(path: Path) -> Iterator[logging.Handler]:
    """Append the log, from level INFO on, to a file as well.

    The program around it may show less: its own handlers get what they got before.
    """
    root = logging.getLogger()
    level = root.level
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # Python's own, for warnings of a program that does not set up its log, works without others.
    last_resort = None if logger.hasHandlers() else logging.lastResort
    others = root.handlers[:]

    def as_before(record: logging.LogRecord) -> bool:
        return record.levelno >= level

    for other in others:
        other.addFilter(as_before)
    if last_resort is not None:
        root.addHandler(last_resort)
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO))
    try:
        yield handler
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()
        if last_resort is not None:
            root.removeHandler(last_resort)
        for other in others:
            other.removeFilter(as_before)


_PROGRESS: ContextVar[bool | None] = ContextVar("progress", default=None)


def progress_is_shown() -> bool:
    """Whether progress bars are shown: as `showing_progress` says, by default on a terminal."""
    chosen = _PROGRESS.get()
    return MESSAGES.is_terminal if chosen is None else chosen


@contextmanager
def showing_progress(shown: bool | None) -> Iterator[None]:
    """Show progress bars, or none; None for the default."""
    token = _PROGRESS.set(shown)
    try:
        yield
    finally:
        _PROGRESS.reset(token)
