"""Listing folders and reading text files, with errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from s3prl_mtl.errors import UserError

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"})


def absolute(path: str | os.PathLike[str]) -> Path:
    """The absolute path, with `~` expanded and symbolic links kept."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def walk_files(root: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative to it with `/`, in sorted order.

    Follows symbolic links to folders, each folder once. Skips hidden names: archives packed on
    macOS contain `._name` files with the suffixes of audio.

    Raises:
        UserError: the folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()

    def below(folder: str, prefix: str) -> Iterator[str]:
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(folder, error) from error
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from below(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name

    return below(str(root), "")


def is_audio(name: str) -> bool:
    """Whether a file name has the suffix of an audio file."""
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def list_audio(root: Path) -> list[str]:
    """Paths of all audio files below a folder, relative to it with `/`, in sorted order.

    Raises:
        UserError: the folder cannot be listed.
    """
    return [name for name in walk_files(root) if is_audio(name)]


def list_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, without hidden ones, in sorted order.

    Raises:
        UserError: the folder cannot be listed.
    """
    try:
        return sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        raise _unreadable(root, error) from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Non-empty lines of a UTF-8 text file with their numbers (from 1), line ends stripped.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise UserError(
            "The file is not UTF-8 text.",
            where=f"{path}, byte {error.start}",
            fix="Convert it to UTF-8, or unpack the corpus again.",
            code="file-malformed",
        ) from error
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.rstrip("\r")) for number, line in lines if line.strip()]


def _unreadable(path: str | os.PathLike[str], error: OSError) -> UserError:
    return UserError(
        f"The file or folder cannot be read: {error.strerror or error}.",
        where=os.fspath(path),
        fix="Check that it exists and that you may read it.",
        code="file-unreadable" if os.path.exists(path) else "file-missing",
    )
