"""Speech Commands v0.01 for keyword spotting.

Layout, two archives::

    speech_commands_v0.01/<word>/<speaker>_nohash_<number>.wav
    speech_commands_v0.01/_background_noise_/<name>.wav
    speech_commands_test_set_v0.01/<class>/<file>.wav

The archives have no top folder: their folders may also lie directly in the parent of the folder
that is configured (if only one archive was unpacked there), or one level below it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from s3prl_mtl.data import (
    AudioIndex,
    Corpus,
    Finding,
    Official,
    Utterance,
    absolute,
    list_files,
    list_folders,
)
from s3prl_mtl.errors import UserError

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
OTHER_WORDS = (
    *("bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow"),
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
)
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
    test is its separate test set, whose folders are the twelve classes. The corpus' other 20 words
    are `_unknown_`; folders of other names are ignored. Every background-noise file is one
    `_silence_` utterance of train and of dev; each time it is read, a random second is cropped.
    Labels: `class`; `random_second`, true for these.

    Args:
        speech_commands_root: the folder `speech_commands_v0.01`.
        speech_commands_test_root: the folder `speech_commands_test_set_v0.01`.
    """

    title: ClassVar[str] = "Speech Commands v0.01"
    task: ClassVar[str] = "ks"
    cacheable: ClassVar[bool] = True
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
        train = self._root_problems(
            self.root,
            (*KEYWORDS, NOISE_FOLDER),
            f"the unpacked {self.title} (one folder a word)",
            "speech_commands_root",
        )
        test = self._root_problems(
            self.test_root,
            CLASSES,
            f"the unpacked test set of {self.title} (one folder a class)",
            "speech_commands_test_root",
        )
        noise = self.train_folder / NOISE_FOLDER
        if not train and not AudioIndex(noise):
            expected = f"files of noise, for the class {SILENCE}"
            others = list_files(noise)
            what = f"has no audio, but {others[0]}" if others else "has no audio"
            train.append(self.problem(noise, what, expected, "speech_commands_root"))
        return [*train, *test]

    def _root_problems(
        self, root: Path, needed: Collection[str], expected: str, setting: str
    ) -> list[str]:
        folder = unpacked_folder(root, needed)
        missing = self.missing_folder(folder, expected, setting)
        if missing:
            return missing
        absent = [name for name in needed if name not in list_folders(folder)]
        if not absent:
            return []
        return [self.problem(folder, f"has no folder {', '.join(absent)}", expected, setting)]

    @property
    def train_folder(self) -> Path:
        """The folder of the words."""
        return unpacked_folder(self.root, (*KEYWORDS, NOISE_FOLDER))

    @property
    def test_folder(self) -> Path:
        """The folder of the test set's classes."""
        return unpacked_folder(self.test_root, CLASSES)

    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split, by folder and file name.

        Raises:
            UserError: as :meth:`Corpus.utterances`.
        """
        self.check_split(split)
        return self._test_utterances() if split == "test" else self._hashed_utterances(split)

    def _hashed_utterances(self, split: str) -> list[Utterance]:
        found: list[Utterance] = []
        root = self.train_folder
        words = {*KEYWORDS, *OTHER_WORDS, NOISE_FOLDER}
        for folder in (name for name in list_folders(root) if name in words):
            names = _audio_in(root / folder).files()
            if folder == NOISE_FOLDER:
                labels: dict[str, Any] = {"class": SILENCE, "random_second": True}
            else:
                labels = {"class": folder if folder in KEYWORDS else UNKNOWN}
                names = [name for name in names if hashed_split(name) == split]
            for name in names:
                identifier = f"{folder}-{Path(name).stem}"
                found.append(Utterance(identifier, root / folder / name, labels))
        return found

    def _test_utterances(self) -> list[Utterance]:
        found: list[Utterance] = []
        root = self.test_folder
        # Beside the parent's other folders, these are found by name.
        folders = CLASSES if root == self.test_root.parent else list_folders(root)
        for folder in sorted(folders):
            if folder not in CLASSES:
                raise UserError(
                    f"ks: the folder {folder!r} of the test set is not one of the twelve classes.",
                    where=str(root),
                    fix=f"The classes are {', '.join(CLASSES)}.",
                    code="corpus-malformed",
                )
            for name in _audio_in(root / folder).files():
                path = root / folder / name
                found.append(Utterance(f"{folder}-{path.stem}", path, {"class": folder}))
        return found

    def findings(self, split: str) -> list[Finding]:
        """Folders that are not words, without audio or within those of words; words among the
        noise; files of another form or in two formats."""
        root = self.test_folder if split == "test" else self.train_folder
        if split == "dev":
            return []  # the same folders as train
        findings: list[Finding] = []
        names = list_folders(root)
        words = [n for n in names if n in (*KEYWORDS, *OTHER_WORDS, NOISE_FOLDER, *CLASSES)]
        if split == "train":
            findings += self._folder_findings(root, names)
            words = [name for name in words if name not in (UNKNOWN, SILENCE)]
        audio = {word: _audio_in(root / word).every_file for word in words}
        findings += self._empty_folders(root, [word for word in words if not audio[word]])
        files = [f"{word}/{name}" for word in words for name in audio[word]]
        findings += self.doubles(AudioIndex(root, files=files), str(root))
        below = [f"{word}/{name}" for word in words for name in list_folders(root / word)]
        if below:
            findings.append(
                Finding(
                    f"{len(below)} folders in those of the words are ignored, with their audio.",
                    where=str(root / below[0]),
                    fix="Remove them.",
                    code="corpus-malformed",
                )
            )
        spoken = [name for name in audio.get(NOISE_FOLDER, []) if "_nohash_" in name]
        if spoken:
            findings.append(
                Finding(
                    f"{len(spoken)} of {len(audio[NOISE_FOLDER])} files of background noise are "
                    f"named like words: they would be trained as {SILENCE}.",
                    where=str(root / NOISE_FOLDER / spoken[0]),
                    fix="Remove them.",
                    code="corpus-malformed",
                    certain=True,
                )
            )
        others = [
            name
            for name in files
            if split == "train" and not name.startswith(NOISE_FOLDER) and "_nohash_" not in name
        ]
        if others:
            findings.append(
                Finding(
                    f"{len(others)} of {len(files)} files are not named `<speaker>_nohash_<number>`"
                    ": their speaker is unknown, so that train and dev may share it.",
                    where=str(root / others[0]),
                    fix="Remove files that are not of the corpus.",
                    code="corpus-malformed",
                )
            )
        return findings

    def _empty_folders(self, root: Path, words: list[str]) -> list[Finding]:
        if not words:
            return []
        return [
            Finding(
                f"{len(words)} folders of words have no audio: {', '.join(words[:10])}.",
                where=str(root / words[0]),
                fix="Add their files, unless their absence is intended.",
                code="corpus-incomplete",
            )
        ]

    def _folder_findings(self, root: Path, names: list[str]) -> list[Finding]:
        findings = []
        classes = [name for name in names if name in (UNKNOWN, SILENCE)]
        if classes:
            findings.append(
                Finding(
                    f"The folder of the training words has folders of the test set's classes "
                    f"({', '.join(classes)}); are both archives unpacked into one folder?",
                    where=str(root / classes[0]),
                    fix="Unpack each archive into a folder of its own.",
                    code="corpus-malformed",
                    certain=True,
                )
            )
        known = {*KEYWORDS, *OTHER_WORDS, NOISE_FOLDER, UNKNOWN, SILENCE}
        others = [name for name in names if name not in known]
        # The parent of the configured folder holds other corpora, too.
        if others and root != self.root.parent:
            findings.append(
                Finding(
                    f"{len(others)} folders are not words of {self.title} and are ignored.",
                    where=str(root / others[0]),
                    fix="Use version 0.01, which has 30 words, or remove these folders.",
                    code="corpus-malformed",
                )
            )
        return findings

    def label_space(self) -> dict[str, Any]:
        return {"classes": list(CLASSES)}

    def official(self, split: str) -> Official | None:
        return PUBLISHED[split]

    def may_share(self, first: str, second: str, labels: Mapping[str, Any]) -> bool:
        """Whether it is background noise, of which each read is another second."""
        return bool(labels.get("random_second"))


def _audio_in(folder: Path) -> AudioIndex:
    """The audio directly in a folder: the corpus has no deeper folders."""
    return AudioIndex(folder, files=list_files(folder))


def unpacked_folder(root: Path, needed: Collection[str]) -> Path:
    """The folder that holds the folders of an archive: `root`, below it, or its parent."""
    for folder in (root, root / root.name, root.parent):
        if folder.is_dir() and all((folder / name).is_dir() for name in needed):
            return folder
    return root


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
