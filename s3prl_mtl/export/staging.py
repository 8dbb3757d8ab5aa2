"""Atomic output of files and folders: written to a staging folder, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = ".export-lock"
"""Locked while its process lives; unlocked in a staging folder that a killed export left."""


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Give a path to write a file or folder to, and rename it to `path` if no error is raised.

    An empty folder at `path`, which may be a mount or the working directory, is kept: the output is
    moved into it.

    Args:
        path: absolute; it does not exist, or is an empty folder. Folders above it are created.

    Raises:
        OSError: the disk is full, the folder cannot be written, or `path` was created meanwhile.
    """
    above = next(folder for folder in path.parents if os.path.lexists(folder))
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{above} is not a folder")
    into = path.is_dir()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _staging_folder(path if into else path.parent, path.name) as staging:
        yield staging / path.name
        if into:
            _move_all(staging / path.name, path)
            return
        # The second file of a pair first: when `path` exists, it can be loaded.
        written = [file for file in staging.iterdir() if file.name != _LOCK]
        for file in sorted(written, key=lambda file: file.name == path.name):
            target = path.with_name(file.name)
            _refuse_existing(target)
            os.replace(file, target)


def remove_stale(path: Path) -> None:
    """Remove staging folders of killed exports to `path`, but not those in use."""
    prefix = _prefix(path.name)
    for folder in (path, path.parent):
        try:
            found = [entry for entry in folder.iterdir() if entry.name.startswith(prefix)]
        except OSError:
            continue  # The folder does not exist or cannot be read.
        for staging in found:
            if not (staging / _LOCK).is_file():
                continue
            try:
                with FileLock(staging / _LOCK, timeout=0):
                    shutil.rmtree(staging, ignore_errors=True)
            except (Timeout, OSError):
                continue


@contextmanager
def _staging_folder(folder: Path, name: str) -> Iterator[Path]:
    while True:
        staging = Path(tempfile.mkdtemp(dir=folder, prefix=_prefix(name)))
        lock = FileLock(staging / _LOCK, timeout=0)
        try:
            lock.acquire()
            # Another export may have removed it as stale before it was locked.
            if (staging / _LOCK).is_file():
                break
            lock.release()
        except (Timeout, FileNotFoundError):
            continue
    try:
        yield staging
    finally:
        lock.release()
        shutil.rmtree(staging, ignore_errors=True)


def _prefix(name: str) -> str:
    return f".{name}."


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, f"{path} was created meanwhile")


def _move_all(source: Path, target: Path) -> None:
    """Move all entries of a folder into another one, or none of them."""
    moved: list[Path] = []
    try:
        for entry in sorted(source.iterdir()):
            path = target / entry.name
            _refuse_existing(path)
            entry.rename(path)
            moved.append(path)
    except BaseException:
        for path in moved:
            path.rename(source / path.name)
        raise
