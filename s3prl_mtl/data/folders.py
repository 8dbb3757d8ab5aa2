"""Listing folders and reading text files, with errors that name the file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar, cast

from s3prl_mtl.data.archives import archives_of, file_size
from s3prl_mtl.errors import UserError

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"})
LOSSLESS_SUFFIXES = (".wav", ".flac", ".aiff", ".aif")
"""In the order in which they are preferred."""
UNDECODABLE_SUFFIXES = frozenset({".m4a", ".aac", ".mp4", ".wma", ".amr"})
"""Formats of speech corpora that libsndfile cannot read."""
PACKED_SUFFIXES = (".gz", ".zip", ".tar", ".tar.gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


T = TypeVar("T")

Stamp = list[int] | None
"""Size, modification time and change time (ns) of a file or folder; None if it does not exist."""

_reads: ContextVar[dict[str, Stamp] | None] = ContextVar("reads", default=None)


def stamp(path: str | os.PathLike[str]) -> Stamp:
    """Size and times of a file or folder, which change with its content or its list of names."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    # The change time cannot be set to an earlier one, unlike the modification time.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


@contextmanager
def record_reads() -> Iterator[dict[str, Stamp]]:
    """Record the folders and files that the functions of this module read in the context.

    Yields:
        Their stamps before they were read, by path. Includes the folder around a listed one, in
        which others may appear; not that of a file, which may be a folder of runs and logs.
    """
    reads: dict[str, Stamp] = {}
    token = _reads.set(reads)
    try:
        yield reads
    finally:
        _reads.reset(token)


def note_read(path: str | os.PathLike[str]) -> None:
    """Note that a corpus depends on a file or folder, or on its absence.

    Needed only before a corpus reads it, or looks whether it exists, by other functions than those
    of `s3prl_mtl.data`.
    """
    reads = _reads.get()
    if reads is not None and os.fspath(path) not in reads:
        reads[os.fspath(path)] = stamp(path)


def repeat_reads(reads: Mapping[str, Stamp]) -> None:
    """Note what :func:`record_reads` recorded before, where its result is used again."""
    recorded = _reads.get()
    if recorded is not None:
        recorded.update(reads)


class listed_once(Generic[T]):
    """A property of a corpus that lists its folders: computed once for an object.

    Unlike `functools.cached_property`, each use counts as a read of these folders for
    :func:`record_reads`.
    """

    def __init__(self, method: Callable[[Any], T]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"_{name}_listed"

    def __get__(self, instance: Any, owner: type) -> T:
        if self._key not in vars(instance):
            with record_reads() as reads:
                vars(instance)[self._key] = self._method(instance), reads
        value, reads = vars(instance)[self._key]
        repeat_reads(reads)
        return cast(T, value)


def absolute(path: str | os.PathLike[str]) -> Path:
    """The absolute path, with `~` expanded and symbolic links kept."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def walk_files(root: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative to it with `/`, in sorted order.

    Follows symbolic links to folders, each folder once. Skips hidden names: archives packed on
    macOS contain `._name` files with the suffixes of audio. Files in :mod:`.archives` are among
    them, in their places.

    Raises:
        UserError: the folder cannot be listed.
    """
    note_read(os.path.dirname(root))
    seen: set[tuple[int, int]] = set()

    def below(folder: str, prefix: str) -> Iterator[str]:
        note_read(folder)
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

    archived = _archived(root)
    if not archived:
        return below(str(root), "")
    return iter(sorted([*below(str(root), ""), *archived], key=lambda name: name.split("/")))


def _archived(root: Path) -> list[str]:
    """Paths of files below a folder that are in archives, relative to it with `/`."""
    found = archives_of(root)
    if found is None:
        return []
    archives, folder = found
    note_read(archives.index)
    return archives.below(folder)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file exists, in a folder or in :mod:`.archives`."""
    return file_size(path) is not None


def is_audio(name: str) -> bool:
    """Whether a file name has the suffix of an audio file."""
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def list_audio(root: Path) -> list[str]:
    """Paths of all audio files below a folder, relative to it with `/`, in sorted order.

    Raises:
        UserError: the folder cannot be listed.
    """
    return [name for name in walk_files(root) if is_audio(name)]


def audio_stem(name: str) -> str:
    """A path without the suffix of an audio file; other suffixes belong to the name."""
    stem, suffix = os.path.splitext(name)
    known = suffix.lower() in AUDIO_SUFFIXES | UNDECODABLE_SUFFIXES
    return stem if known else name


class AudioIndex:
    """Index of the audio files below a folder, independent of their format.

    Corpora are often converted: a list names `a/1.wav`, the disk has `a/1.flac`. Files are found
    by their path without the suffix. Of several files of one stem, the file that the list names is
    taken, otherwise a lossless one, otherwise the first one by suffix. Files that libsndfile cannot
    read (`.m4a`) are found only if there is no other, so that the scan reports them.

    Example::

        index = AudioIndex(root)
        index.find("a/1.wav")  # root / "a/1.flac"
        index.doubles          # [("b/2.wav", "b/2.mp3")]: the second one is not used

    Args:
        root: the folder.
        by_name: stems are file names, as in lists without folders; otherwise relative paths.
        files: paths relative to `root`, if they are known; default: :func:`walk_files`.

    Raises:
        UserError: the folder cannot be listed.
    """

    def __init__(
        self, root: Path, *, by_name: bool = False, files: Iterable[str] | None = None
    ) -> None:
        self.root = root
        self._by_name = by_name
        self._files: dict[str, list[str]] = defaultdict(list)
        for name in walk_files(root) if files is None else files:
            if is_audio(name) or os.path.splitext(name)[1].lower() in UNDECODABLE_SUFFIXES:
                self._files[self._stem(name)].append(name)
        for same in self._files.values():
            same.sort(key=_preference)

    def _stem(self, name: str) -> str:
        return audio_stem(name.rsplit("/", 1)[-1] if self._by_name else name)

    def __iter__(self) -> Iterator[str]:
        """The stems, in the order of the files."""
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def files(self) -> list[str]:
        """The file of every stem, relative to the folder."""
        return [same[0] for same in self._files.values()]

    def find(self, name: str) -> Path | None:
        """The file of a name of a list (with or without a suffix), or None."""
        same = self._files.get(self._stem(name))
        if same is None:
            return None
        return self.root / (name if name in same else same[0])

    @property
    def every_file(self) -> list[str]:
        """All files, relative to the folder, those of one stem together."""
        return [name for same in self._files.values() for name in same]

    @property
    def doubles(self) -> list[tuple[str, str]]:
        """Files of a stem that has another file: (preferred file, other file)."""
        return [
            (same[0], other)
            for same in self._files.values()
            for other in same[1:]
            if not _undecodable(other)
        ]


def _undecodable(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in UNDECODABLE_SUFFIXES


def _preference(name: str) -> tuple[int, str, str]:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in LOSSLESS_SUFFIXES:
        rank = LOSSLESS_SUFFIXES.index(suffix)
    else:
        rank = len(LOSSLESS_SUFFIXES) + _undecodable(name)
    return rank, suffix, name


class MovedFiles:
    """Finds files under a folder by paths of another machine.

    `/home/me/mix/dev/wav/1.wav` is the file below the folder whose path shares the most last
    components with it, and has the same name (:func:`audio_stem`). If two files share as many, none
    is found. Formats that cannot be read (`.m4a`) are found only if there is no other.

    Args:
        root: the folder. It is listed at the first search.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[str]] | None = None

    def find(self, path: str) -> Path | None:
        """The file that an absolute or relative path of a list means, or None."""
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for name in walk_files(self.root):
                if is_audio(name) or _undecodable(name):
                    self._by_name[audio_stem(name.rsplit("/", 1)[-1])].append(name)
        *folders, file = path.replace("\\", "/").split("/")
        found: dict[int, set[str]] = defaultdict(set)
        for name in self._by_name.get(audio_stem(file), ()):
            found[_common_tail(folders, name.split("/")[:-1])].add(name)
        if not found:
            return None
        best = sorted(found[max(found)], key=_preference)
        if len({audio_stem(name) for name in best}) > 1:
            return None
        named = [name for name in best if PurePosixPath(name).name == file]
        return self.root / (named or best)[0]

    @property
    def without_result(self) -> str:
        """The searched place, for errors about a file that was not found."""
        return f"no file of its name, or several, below {self.root}"


def _common_tail(first: list[str], second: list[str]) -> int:
    """Number of last components that two paths share."""
    count = 0
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        count += 1
    return count


def list_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, without hidden ones, in sorted order.

    Raises:
        UserError: the folder cannot be listed.
    """
    return _list_names(root, folders=True)


def list_files(root: Path) -> list[str]:
    """Names of the files in a folder, without hidden ones, in sorted order.

    Raises:
        UserError: the folder cannot be listed.
    """
    return _list_names(root, folders=False)


def _list_names(root: Path, folders: bool) -> list[str]:
    note_read(os.path.dirname(root))
    note_read(root)
    try:
        names = [e.name for e in os.scandir(root) if e.is_dir() == folders and e.name[0] != "."]
    except OSError as error:
        raise _unreadable(root, error) from error
    return sorted(names if folders else [*names, *(n for n in _archived(root) if "/" not in n)])


def read_lines(path: Path, other_encoding: str | None = None) -> list[tuple[int, str]]:
    """Non-empty lines of a text file with their numbers (from 1), line ends stripped.

    Args:
        path: the file, in UTF-8.
        other_encoding: an encoding for files that are not UTF-8, or None to refuse them.

    Raises:
        UserError: the file cannot be read, or is not text in these encodings.
    """
    note_read(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if other_encoding is None:
            raise UserError(
                "The file is not UTF-8 text.",
                where=f"{path}, byte {error.start}",
                fix="Convert it to UTF-8, with `iconv -f LATIN1 -t UTF-8`, or -f UTF-16.",
                code="file-malformed",
            ) from error
        text = content.decode(other_encoding)
    lines = enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _unreadable(path: str | os.PathLike[str], error: OSError) -> UserError:
    return UserError(
        f"The file or folder cannot be read: {error.strerror or error}.",
        where=os.fspath(path),
        fix="Check that it exists and that you may read it.",
        code="file-unreadable" if os.path.exists(path) else "file-missing",
    )
