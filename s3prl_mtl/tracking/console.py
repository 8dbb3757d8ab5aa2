"""The terminal: shared consoles, so that progress bars and log lines do not collide."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

OUTPUT = Console()
MESSAGES = Console(stderr=True)


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
        handler = RichHandler(console=MESSAGES, show_path=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="[%X]"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.handlers = [handler]
    for chatty in ("matplotlib", "urllib3", "filelock", "fsspec", "numba"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def log_to_file(path: Path) -> logging.FileHandler:
    """Append the log to a file as well; remove the handler from the root logger to stop."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    return handler
