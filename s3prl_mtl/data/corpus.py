"""What a corpus is to the rest: splits, utterances, a label space, and a check of its layout."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from s3prl_mtl.data.utterance import Utterance
from s3prl_mtl.errors import UserError, nearest


class Corpus(ABC):
    """A data set in the folders that people have after unpacking it.

    A subclass says in its docstring what the corpus is and how it lies on disk, keeps its split
    rule in one visible function, and reads side files and folder listings only: audio files are
    opened by :func:`s3prl_mtl.data.load_cuts`, once. The constructor reads nothing.

    Args:
        settings: the settings that the corpus was made from, plain JSON values. They name the
            cache folder of its manifests.
    """

    title: ClassVar[str]
    """The corpus's own name, as people write it."""

    task: ClassVar[str]
    """The word after `-d`, for error messages."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings), default=os.fspath))

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, the training split first."""

    @abstractmethod
    def problems(self) -> list[str]:
        """A cheap check of the layout: empty if usable.

        Each entry says which path was tried, what was expected there, and the setting that
        changes it.
        """

    @abstractmethod
    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split, in an order that is the same on every machine.

        Raises:
            UserError: the split has another name, or a side file is missing or malformed.
        """

    @abstractmethod
    def label_space(self) -> dict[str, Any]:
        """What an expert needs to build its head; plain JSON.

        Raises:
            UserError: a side file is missing or malformed.
        """

    def content_check(self, split: str) -> Callable[[Tensor], bool] | None:
        """A rule on the waveform that decides whether an utterance is used, or None for no rule.

        Given a rule, every file of the split is decoded once when the split is scanned. The
        function gets a waveform (samples,) at 16 kHz; what it refuses is left out as the task
        defines it, and is no fault of the file.
        """
        return None

    def fingerprint(self, split: str, utterances: Sequence[Utterance] | None = None) -> str:
        """A digest that changes whenever the split's labels or audio files do.

        Covers every utterance (id, path, labels, start, duration), so all side files as far as
        they matter, and the size and modification time of every audio file. One `stat` per file
        is what 150 000 files still afford (2 s on a local disk, measured); their content is
        not read.

        Args:
            split: the split's name.
            utterances: its utterances where the caller has them already.
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
        """Raises UserError where the corpus has no split of that name."""
        if split not in self.splits:
            raise UserError(
                f"{self.task}: {self.title} has no split {split!r}.",
                fix=nearest(split, list(self.splits)),
            )

    def missing_folder(self, path: Path, expected: str, setting: str) -> list[str]:
        """A problem, in a list, if the folder does not exist; otherwise an empty list."""
        if path.is_dir():
            return []
        what = "is not a folder" if path.exists() else "does not exist"
        return [self.problem(path, what, expected, setting)]

    def missing_file(self, path: Path, expected: str, setting: str) -> list[str]:
        """A problem, in a list, if the file does not exist; otherwise an empty list."""
        if path.is_file():
            return []
        what = "is not a file" if path.exists() else "does not exist"
        return [self.problem(path, what, expected, setting)]

    def problem(self, path: Path, what: str, expected: str, setting: str) -> str:
        """The one wording of a layout problem."""
        return (
            f"{self.task}: {path} {what}; expected {expected}; "
            f"set `--data` or {self.task}'s `datarc.{setting}`."
        )


def _stamp(path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "absent"
    return f"{status.st_size}:{status.st_mtime_ns}"
