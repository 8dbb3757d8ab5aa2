"""Audio of corpora in tar archives, found under the paths that the files had in their folders.

A few large archives are read and copied faster than a million files, and suit object storage.
:func:`.shards.write_archives` copies a folder of corpora, its audio into those of a lhotse Shar::

    OUT/LibriSpeech/...                      the folders and all other files, as they were
    OUT/.shards/cuts.000000.jsonl.gz         Shar: `CutSet.from_shar(in_dir="OUT/.shards")`
    OUT/.shards/recording.000000.tar         the files, unchanged
    OUT/.shards.arrow                        index: path, archive, offset and size of each file

Corpora list and read their audio by the functions of `s3prl_mtl.data`, which look into the index of
the nearest folder above a path that has one. So every corpus is read as from its folders, in the
same order.
"""

from __future__ import annotations

import functools
import io
import os
from bisect import bisect_left
from pathlib import Path
from typing import BinaryIO

import fsspec
import pyarrow as pa

from s3prl_mtl.errors import UserError

FOLDER = ".shards"
INDEX = ".shards.arrow"
ARCHIVE = "recording.%06d.tar"

SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # relative to the folder of corpora, with `/`; sorted
        ("archive", pa.int32()),  # its number
        ("offset", pa.int64()),  # bytes, of the content in the archive
        ("size", pa.int64()),
    ]
)


class Archives:
    """The index of archives, memory-mapped.

    Args:
        root: the folder of corpora; the index is `root/.shards.arrow`.

    Raises:
        UserError: the index is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index = root / INDEX
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(self.index))).read_all()
        except pa.ArrowInvalid as error:
            raise UserError(
                f"The index of the archives is damaged: {error}.",
                where=str(self.index),
                fix="Copy it again, or write the archives again with `s3prl-mtl shard`.",
                code="file-malformed",
            ) from error
        self._paths = self._table.column("path")
        metadata = self._table.schema.metadata or {}
        self.url = metadata.get(b"url", b"").decode() or str(root / FOLDER)
        """The folder or address of the archives."""

    def below(self, folder: str) -> list[str]:
        """The files below a folder, relative to it, in sorted order.

        Args:
            folder: relative to the root, with `/`; empty for the root.
        """
        prefix = f"{folder}/" if folder else ""
        # `0` is the character after `/`.
        end = self._place(f"{folder}0") if folder else len(self._paths)
        start = self._place(prefix)
        names = self._paths.slice(start, end - start).to_pylist()
        return [name[len(prefix) :] for name in names]

    def find(self, name: str) -> tuple[str, int, int] | None:
        """Address of the archive, offset and size in bytes of a file; None if there is no such.

        Args:
            name: relative to the root, with `/`.
        """
        place = self._place(name)
        if place == len(self._paths) or self._paths[place].as_py() != name:
            return None
        number, offset, size = (
            self._table.column(key)[place].as_py() for key in ("archive", "offset", "size")
        )
        return f"{self.url}/{ARCHIVE % number}", offset, size

    def _place(self, name: str) -> int:
        return bisect_left(range(len(self._paths)), name, key=lambda i: self._paths[i].as_py())


def archives_of(path: str | os.PathLike[str]) -> tuple[Archives, str] | None:
    """The archives in which a folder may have files, and its path relative to their root; or None.

    Args:
        path: absolute.
    """
    root = _root(os.fspath(path))
    if root is None:
        return None
    relative = os.path.relpath(path, root).replace(os.sep, "/")
    return _open(root), "" if relative == "." else relative


def file_size(path: str | os.PathLike[str]) -> int | None:
    """Bytes of a file, in a folder or in an archive; None if it does not exist."""
    found = _find(path)
    if found is not None:
        return found[2]
    return os.path.getsize(path) if os.path.isfile(path) else None


def open_file(path: str | os.PathLike[str]) -> bytes | BinaryIO:
    """The argument of soundfile for a file: its path, or its content if it is in an archive.

    Raises:
        OSError: the archive cannot be read.
    """
    found = _find(path)
    if found is None:
        # soundfile encodes text strictly, but names may be of any bytes.
        return os.fsencode(path)
    archive, offset, size = found
    system, address = fsspec.core.url_to_fs(archive)
    return io.BytesIO(system.cat_file(address, start=offset, end=offset + size))


def _find(path: str | os.PathLike[str]) -> tuple[str, int, int] | None:
    root = _root(os.path.dirname(path))
    if root is None:
        return None
    return _open(root).find(os.path.relpath(path, root).replace(os.sep, "/"))


def forget_archives() -> None:
    """Look for indices again: archives were written."""
    _root.cache_clear()
    _open.cache_clear()


@functools.lru_cache(maxsize=65_536)
def _root(folder: str) -> str | None:
    """The nearest folder above a folder, or itself, that has an index."""
    if os.path.isfile(os.path.join(folder, INDEX)):
        return folder
    parent = os.path.dirname(folder)
    return None if parent == folder else _root(parent)


@functools.lru_cache(maxsize=8)
def _open(root: str) -> Archives:
    return Archives(Path(root))
