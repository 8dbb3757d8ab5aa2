"""Atomic writes: a path always holds the old file or the whole new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial-*-"
"""Matches the beginning of the names of partial files, followed by the name of the file."""


@contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Give a path to write to, and rename it to the final path if no error is raised.

    Args:
        path: the final path; its folder exists. A link is replaced by the file.
        sync: flush file and rename to disk, so that a power failure loses neither.

    Raises:
        OSError: the file cannot be written; `path` is as it was.
    """
    # The name ends as that of the file: some writers choose the format by it.
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        if sync:
            _sync(partial)
        os.replace(partial, path)
        if sync:
            _sync(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8.

    Raises:
        OSError: the file cannot be written; `path` is as it was.
    """
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partials(folder: Path, name: str) -> None:
    """Remove the partial files that killed processes left.

    Args:
        folder: of the files.
        name: of the files, as a glob pattern.
    """
    for partial in folder.glob(f"{PARTIAL}{name}"):
        partial.unlink(missing_ok=True)


def write_reason(error: BaseException) -> str | None:
    """The system's reason for refusing a write; None for an error of another kind.

    torch and safetensors raise errors of their own in place of the system's.
    """
    text = str(error)
    if type(error).__name__ == "SafetensorError" and "I/O error" in text:
        return text
    from_torch = "PytorchStreamWriter" in text or "unexpected pos" in text
    if not isinstance(error, OSError) and not (isinstance(error, RuntimeError) and from_torch):
        return None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return "the disk is full, or a limit on the size of files was reached"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_incomplete_line(path: Path) -> None:
    """Truncate an incomplete last line that a crash left.

    In place, since a training process may have the file open.

    Raises:
        OSError: the file cannot be changed.
    """
    with path.open("r+b") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
