"""Write files that other processes see whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Give a path to write to, and rename it to the final path if no error is raised.

    The final path always holds the old file or the whole new one. The temporary name is in the
    same folder and has the same suffixes.

    Args:
        path: the final path; its folder exists.
        sync: flush to disk, so that this also holds after a power failure.

    Raises:
        OSError: the file cannot be written; the old one is intact.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        if sync:
            _sync(partial)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    if sync:
        _sync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        OSError: it cannot be written; the old text is intact.
    """
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
