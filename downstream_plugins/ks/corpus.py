"""Speech Commands v0.01 for keyword spotting.

Layout, two archives::

    speech_commands_v0.01/<word>/<speaker>_nohash_<number>.wav
    speech_commands_v0.01/_background_noise_/<name>.wav
    speech_commands_test_set_v0.01/<class>/<file>.wav
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from s3prl_mtl.data import Corpus, Official, Utterance, absolute, list_audio, list_folders
from s3prl_mtl.errors import UserError

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "_unknown_", "_silence_"
CLASSES = (*KEYWORDS, UNKNOWN, SILENCE)
NOISE_FOLDER = "_background_noise_"
PUBLISHED = {
    "train": Official(51_094, classes=12),
    "dev": Official(6804, classes=12),
    "test": Official(3081, classes=12),
}
"""SUPERB's splits; train and dev include the six files of background noise."""

_HASH_RANGE = 2**27 - 1


class SpeechCommands(Corpus):
    """Speech Commands v0.01: one word a second, by thousands of people.

    Train and dev are the data set's own split by a hash of the file name (:func:`hashed_split`);
    test is its separate test set, whose folders are the twelve classes. Other words are
    `_unknown_`. Every background-noise file is one `_silence_` utterance of train and of dev; each
    time it is read, a random second is cropped. Labels: `class`; `random_second`, true for these.

    Args:
        speech_commands_root: the folder `speech_commands_v0.01`.
        speech_commands_test_root: the folder `speech_commands_test_set_v0.01`.
    """

    title: ClassVar[str] = "Speech Commands v0.01"
    task: ClassVar[str] = "ks"
    splits: tuple[str, ...] = ("train", "dev", "test")

    def __init__(
        self,
        *,
        speech_commands_root: str | os.PathLike[str],
        speech_commands_test_root: str | os.PathLike[str],
    ) -> None:
        self.root = absolute(speech_commands_root)
        self.test_root = absolute(speech_commands_test_root)
        super().__init__(
            {
                "speech_commands_root": self.root,
                "speech_commands_test_root": self.test_root,
            }
        )

    def problems(self) -> list[str]:
        return [
            *self._root_problems(
                self.root,
                f"the unpacked {self.title} (one folder a word)",
                "speech_commands_root",
            ),
            *self._root_problems(
                self.test_root,
                f"the unpacked test set of {self.title} (one folder a class)",
                "speech_commands_test_root",
            ),
        ]

    def _root_problems(self, root: Path, expected: str, setting: str) -> list[str]:
        missing = self.missing_folder(root, expected, setting)
        if missing:
            return missing
        needed = (*KEYWORDS, NOISE_FOLDER) if root == self.root else CLASSES
        absent = [name for name in needed if name not in list_folders(root)]
        if not absent:
            return []
        what = f"has no folder {', '.join(absent)}"
        return [self.problem(root, what, expected, setting)]

    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split, by folder and file name.

        Raises:
            UserError: as :meth:`Corpus.utterances`.
        """
        self.check_split(split)
        return self._test_utterances() if split == "test" else self._hashed_utterances(split)

    def _hashed_utterances(self, split: str) -> list[Utterance]:
        found: list[Utterance] = []
        for folder in list_folders(self.root):
            names = list_audio(self.root / folder)
            paths = [self.root / folder / name for name in names]
            if folder == NOISE_FOLDER:
                labels: dict[str, Any] = {"class": SILENCE, "random_second": True}
            else:
                labels = {"class": folder if folder in KEYWORDS else UNKNOWN}
                paths = [path for path in paths if hashed_split(path.name) == split]
            found += [Utterance(f"{folder}-{path.stem}", path, labels) for path in paths]
        return found

    def _test_utterances(self) -> list[Utterance]:
        found: list[Utterance] = []
        for folder in list_folders(self.test_root):
            if folder not in CLASSES:
                raise UserError(
                    f"ks: the folder {folder!r} of the test set is not one of the twelve classes.",
                    where=str(self.test_root),
                    fix=f"The classes are {', '.join(CLASSES)}.",
                    code="corpus-malformed",
                )
            for name in list_audio(self.test_root / folder):
                stem = PurePosixPath(name).stem
                path = self.test_root / folder / name
                found.append(Utterance(f"{folder}-{stem}", path, {"class": folder}))
        return found

    def label_space(self) -> dict[str, Any]:
        return {"classes": list(CLASSES)}

    def official(self, split: str) -> Official | None:
        return PUBLISHED[split]

    def may_share(self, first: str, second: str, labels: Mapping[str, Any]) -> bool:
        """Whether it is background noise, of which each read is another second."""
        return bool(labels.get("random_second"))


def hashed_split(name: str) -> str | None:
    """The split of a file of Speech Commands v0.01: `train`, `dev`, or None for dropped ones.

    The rule of the data set: the SHA-1 of the name up to `_nohash_`, which identifies the speaker;
    below 10 % of its range dev, from 10 to 20 % the old test set (not used by SUPERB, which uses
    the separate test set), the rest train.

    Args:
        name: the file's name, without its folder.
    """
    speaker = name.split("_nohash_")[0]
    digest = int(hashlib.sha1(speaker.encode()).hexdigest(), 16)
    percentage = digest % (_HASH_RANGE + 1) * (100.0 / _HASH_RANGE)
    if percentage < 10:
        return "dev"
    return None if percentage < 20 else "train"
