"""Speech in several languages, one folder per language.

Layout::

    train/<language>/...wav    dev/<language>/...wav    test/<language>/...wav

A language's folder may have subfolders, and files in any format of libsndfile.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from s3prl_mtl.data import Corpus, Utterance, absolute, list_audio, list_folders


class LanguageFolders(Corpus):
    """Speech in folders of languages, already divided into train, dev and test.

    Labels: `language`, the name of the folder. Label space: `languages`, those of train.

    Args:
        root: the folder with `train`, `dev` and `test`.
    """

    title: ClassVar[str] = "Language folders"
    task: ClassVar[str] = "lid"
    cacheable: ClassVar[bool] = True
    splits: tuple[str, ...] = ("train", "dev", "test")

    def __init__(self, *, root: str | os.PathLike[str]) -> None:
        self.root = absolute(root)
        super().__init__({"root": self.root})

    def problems(self) -> list[str]:
        missing = self.missing_folder(self.root, "the folders train, dev and test", "root")
        if missing:
            return missing
        expected = "a folder for each language"
        return [
            problem
            for split in self.splits
            for problem in self.missing_folder(self.root / split, expected, "root")
        ]

    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split, by language and file name.

        Raises:
            UserError: unknown split, or a folder cannot be listed.
        """
        self.check_split(split)
        folder = self.root / split
        return [
            Utterance(f"{language}/{name}", folder / language / name, {"language": language})
            for language in list_folders(folder)
            for name in list_audio(folder / language)
        ]

    def label_space(self) -> dict[str, Any]:
        return {"languages": list_folders(self.root / "train")}
