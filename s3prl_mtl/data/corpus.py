"""Base class of corpora: splits, utterances, label space, and a check of the layout."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from s3prl_mtl.data.archives import file_size
from s3prl_mtl.data.folders import PACKED_SUFFIXES, AudioIndex
from s3prl_mtl.data.utterance import Utterance
from s3prl_mtl.errors import UserError, nearest

_LISTED_NAMES = 5  # of a folder, in an error


@dataclass(frozen=True)
class Official:
    """The size of a split as published.

    Args:
        utterances: number of utterances.
        hours: of audio.
        speakers: number of speakers.
        classes: number of classes.
    """

    utterances: int | None = None
    hours: float | None = None
    speakers: int | None = None
    classes: int | None = None


@dataclass(frozen=True)
class Finding:
    """A property of a corpus that makes training or its scores wrong, or may do so.

    Args:
        what: a full sentence with counts.
        where: an example: a file and line, or an utterance.
        fix: what would be right.
        code: one of `s3prl_mtl.errors.CODES`.
        certain: an error; otherwise it may be intended, and is a warning.
    """

    what: str
    where: str | None = None
    fix: str | None = None
    code: str = "corpus-inconsistent"
    certain: bool = False

    def __str__(self) -> str:
        where = f" Where: {self.where}." if self.where else ""
        return f"{self.what}{where}" + (f" Fix: {self.fix}" if self.fix else "")


class Corpus(ABC):
    """A data set in the folders into which its original archives unpack.

    The docstring of a subclass describes the corpus and its layout on disk. A subclass keeps its
    split rule in one visible function and reads metadata files and folder listings only;
    :func:`s3prl_mtl.data.load_cuts` opens the audio files, once. The constructor reads nothing.

    Args:
        settings: the settings that select the corpus, plain JSON values. The cache folder of its
            manifests depends on them.
    """

    title: ClassVar[str]
    """Name of the corpus, for people."""

    task: ClassVar[str]
    """Name of the task, for error messages."""

    cacheable: ClassVar[bool] = False
    """Whether `utterances`, `label_space`, `findings` and `notes` depend only on the settings and
    on files and folders that the functions of `s3prl_mtl.data` read. Their results are then kept
    until one of these changes (:mod:`.corpus_cache`)."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings), default=os.fspath))

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, training first."""

    def doubles(self, index: AudioIndex, where: str) -> list[Finding]:
        """A finding about files of the same name and different formats, of which one is used.

        Args:
            index: the files.
            where: for people, such as `split 'train'`.
        """
        doubles = index.doubles
        if not doubles:
            return []
        used, unused = doubles[0]
        return [
            Finding(
                f"{len(doubles)} audio files of {where} have the same name as another one. The "
                "file that a list names is used, otherwise a lossless one.",
                where=f"{index.root / unused}, beside {used}",
                fix="Remove the files that are not meant.",
                code="corpus-duplicates",
            )
        ]

    def repeated(
        self, path: Path, entries: Iterable[tuple[int, str, Any]], names: str
    ) -> list[Finding]:
        """Findings about names that a metadata file has on several lines.

        Different values of a name are an error, equal ones a warning.

        Args:
            path: the file.
            entries: (line number, name, value) of each line.
            names: for people, what the file lists, such as `utterances`.
        """
        lines: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        for number, name, value in entries:
            lines[name].append((number, value))
        findings = []
        for certain in (True, False):
            some = {
                name: [number for number, _ in found]
                for name, found in lines.items()
                if len(found) > 1 and certain == any(value != found[0][1] for _, value in found)
            }
            if some:
                name, numbers = next(iter(some.items()))
                findings.append(
                    Finding(
                        f"{len(some)} of {len(lines)} {names} are in {path.name} more than once, "
                        + ("with different values." if certain else "with the same value."),
                        where=f"{path}, lines {' and '.join(map(str, numbers))}: {name}",
                        fix="Keep one line of each.",
                        code="corpus-inconsistent" if certain else "corpus-duplicates",
                        certain=certain,
                    )
                )
        return findings

    @abstractmethod
    def problems(self) -> list[str]:
        """Problems of the layout, found without opening audio; empty if the layout is valid.

        Each entry states the path, what was expected there, and the setting that changes it
        (:meth:`problem`).
        """

    @abstractmethod
    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split, in the same order on every machine.

        Raises:
            UserError: unknown split, or a metadata file is missing or malformed.
        """

    @abstractmethod
    def label_space(self) -> dict[str, Any]:
        """The labels from which an expert builds its head: plain JSON.

        Raises:
            UserError: a metadata file is missing or malformed.
        """

    def content_check(self, split: str) -> Callable[[Tensor], bool] | None:
        """A predicate on waveforms that selects the utterances to use, or None to use all.

        With a predicate, the scan of the split decodes every file once. The predicate gets a
        waveform (samples,) at 16 kHz. Rejected utterances are excluded by the definition of the
        task and do not count as faulty.
        """
        return None

    # ------------------------------------------------- for the report of the corpus

    def findings(self, split: str) -> list[Finding]:
        """Contradictions between the metadata files of a split, and between these and the audio."""
        return []

    def notes(self) -> list[str]:
        """Lines for the log about where the files of the corpus were found."""
        return []

    def official(self, split: str) -> Official | None:
        """The published size of a split, if known."""
        return None

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        """The speaker of an utterance; None if unknown."""
        return None

    def classes(self, labels: Mapping[str, Any]) -> list[str]:
        """The classes of an utterance; empty if its labels are not classes."""
        return [str(labels["class"])] if "class" in labels else []

    def declared_classes(self) -> list[str]:
        """All values of :meth:`classes` that the label space has."""
        return [str(name) for name in self.label_space().get("classes", [])]

    def may_share(self, first: str, second: str, labels: Mapping[str, Any]) -> bool:
        """Whether an utterance belongs to two splits by definition of the task."""
        return False

    def shared_speakers(self, first: str, second: str) -> Literal["allowed", "warning", "error"]:
        """The severity of a speaker in two splits."""
        return "allowed"

    def fingerprint(self, split: str, utterances: Sequence[Utterance] | None = None) -> str:
        """A digest that changes with the labels and audio files of the split.

        Covers id, path, labels, start and duration of every utterance, and size and modification
        time of every audio file. The content of audio files is not read; one `stat` per file takes
        2 s for 150 000 files on a local disk.

        Args:
            split: name of the split.
            utterances: its utterances, if already known.
        """
        digest = hashlib.sha256()
        stamps: dict[Path, str] = {}
        for utterance in self.utterances(split) if utterances is None else utterances:
            if utterance.path not in stamps:
                stamps[utterance.path] = _stamp(utterance.path)
            entry = (
                utterance.id,
                os.fspath(utterance.path),
                stamps[utterance.path],
                utterance.start_seconds,
                utterance.duration_seconds,
                utterance.labels,
            )
            digest.update(json.dumps(entry, sort_keys=True, default=dict).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def check_split(self, split: str) -> None:
        """Raise `UserError` if the corpus has no split of that name."""
        if split not in self.splits:
            raise UserError(
                f"{self.task}: {self.title} has no split {split!r}.",
                where=f"split {split!r} of {self.task}",
                fix=nearest(split, list(self.splits)),
                code="unknown-name",
            )

    def missing_folder(self, path: Path, expected: str, setting: str) -> list[str]:
        """A list of one problem if the folder does not exist, otherwise an empty list."""
        if path.is_dir():
            return []
        what = "is not a folder" if path.exists() else _absence(path)
        return [self.problem(path, what, expected, setting)]

    def missing_file(self, path: Path, expected: str, setting: str) -> list[str]:
        """A list of one problem if the file does not exist, otherwise an empty list."""
        if path.is_file():
            return []
        what = "is not a file" if path.exists() else _absence(path)
        return [self.problem(path, what, expected, setting)]

    def problem(self, path: Path, what: str, expected: str, setting: str) -> str:
        """The text of a layout problem."""
        return (
            f"{self.task}: {path} {what}; expected {expected}; "
            f"set `--data` or {self.task}'s `datarc.{setting}`."
        )


def _absence(path: Path) -> str:
    """Describe a missing file or folder, and similar names nearby."""
    if path.is_symlink():
        return f"is a link to {os.readlink(path)}, which does not exist"
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:
        return "does not exist"
    if folder != path.parent:
        return f"does not exist; {folder} is the last folder of its path that does"
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    packed = [name for name in names if name in {path.name + s for s in PACKED_SUFFIXES}]
    if packed:
        return f"does not exist, but {folder / packed[0]} does: unpack it"
    if (folder / folder.name / path.name).exists():
        return f"does not exist, but {folder / folder.name / path.name} does"
    by_case = {name.lower(): name for name in names}
    close = get_close_matches(path.name.lower(), by_case, n=3, cutoff=0.7)
    listed = ", ".join(by_case[name] for name in close)
    if not close:
        more = ", ..." if len(names) > _LISTED_NAMES else ""
        listed = ", ".join(names[:_LISTED_NAMES]) + more
    return f"does not exist; {folder} has {listed or 'no files'}"


def _stamp(path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError:
        size = file_size(path)  # in an archive
        return "absent" if size is None else str(size)
    return f"{status.st_size}:{status.st_mtime_ns}"
