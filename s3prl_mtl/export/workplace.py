"""A folder to write an export in, beside its place, which no crash leaves behind for good."""

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
"""Held while its process lives: a workplace that can be locked was left by one that was killed."""


@contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """A place to write to, on the same disk; what is there in the end is renamed to `path`.

    Where an empty folder is at `path`, which may be a mount or the folder that one is in, it stays,
    and what was written is moved into it.

    Args:
        path: absolute; nothing is there, or an empty folder. Folders above it are made.

    Raises:
        OSError: the disk is full, the folder cannot be written, or something has come to be there.
    """
    above = next(folder for folder in path.parents if os.path.lexists(folder))
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{above} is no folder")
    into = path.is_dir()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(path if into else path.parent, path.name) as workplace:
        yield workplace / path.name
        if into:
            _move_all(workplace / path.name, path)
            return
        # The second file of a pair first: who sees `path` can load it.
        written = [file for file in workplace.iterdir() if file.name != _LOCK]
        for file in sorted(written, key=lambda file: file.name == path.name):
            _refuse_newcomer(path.with_name(file.name))
            os.replace(file, path.with_name(file.name))


def remove_stale(path: Path) -> None:
    """Remove the workplaces that killed exports to `path` have left; not those still in use."""
    prefix = _prefix(path.name)
    for folder in (path, path.parent):
        try:
            found = [entry for entry in folder.iterdir() if entry.name.startswith(prefix)]
        except OSError:
            continue  # There is no such folder, or it is not ours to look into.
        for workplace in found:
            if not (workplace / _LOCK).is_file():
                continue
            try:
                with FileLock(workplace / _LOCK, timeout=0):
                    shutil.rmtree(workplace, ignore_errors=True)
            except (Timeout, OSError):
                continue


@contextmanager
def _workplace(folder: Path, name: str) -> Iterator[Path]:
    while True:
        workplace = Path(tempfile.mkdtemp(dir=folder, prefix=_prefix(name)))
        lock = FileLock(workplace / _LOCK, timeout=0)
        try:
            lock.acquire()
            # Another export may have taken it for one that was left before it was locked.
            if (workplace / _LOCK).is_file():
                break
            lock.release()
        except (Timeout, FileNotFoundError):
            continue
    try:
        yield workplace
    finally:
        lock.release()
        shutil.rmtree(workplace, ignore_errors=True)


def _prefix(name: str) -> str:
    return f".{name}."


def _refuse_newcomer(place: Path) -> None:
    if os.path.lexists(place):
        raise FileExistsError(errno.EEXIST, f"{place} has come to be there meanwhile")


def _move_all(source: Path, target: Path) -> None:
    """Move what a folder holds into another one; all of it, or nothing."""
    moved: list[Path] = []
    try:
        for entry in sorted(source.iterdir()):
            place = target / entry.name
            _refuse_newcomer(place)
            entry.rename(place)
            moved.append(place)
    except BaseException:
        for place in moved:
            place.rename(source / place.name)
        raise
