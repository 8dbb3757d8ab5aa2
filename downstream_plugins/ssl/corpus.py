"""Unlabelled audio with a class for each frame, in fairseq's files.

Layout, as `s3prl-mtl cluster` and fairseq write it::

    train.tsv, dev.tsv, test.tsv     a split: the folder of the audio, then `path<TAB>samples` lines
    train.km, dev.km, test.km        the classes of the frames, a line for each file of the split
    dict.km.txt                      `class count` for each class

Other endings than `km` are other label sets of the same audio, each with its dictionary.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from s3prl_mtl.data import (
    Corpus,
    Utterance,
    absolute,
    list_files,
    read_dictionary,
    read_unit_labels,
)
from s3prl_mtl.errors import UserError


class UnitLabelledAudio(Corpus):
    """Audio whose frames have classes, one of each label set.

    Labels: for each label set `offsets`, where its line begins in the file of labels, which is read
    when the utterance is (a manifest with the labels themselves would have gigabytes), and `rates`,
    its labels per second; `samples`, as in the list.

    Args:
        path: the folder of the lists, labels and dictionaries.
        label_sets: endings of the files of labels.
        label_rate: labels per second; None: found from the number of labels.
        min_sample_size: shorter files are left out; in samples.
    """

    title: ClassVar[str] = "unit labels"
    task: ClassVar[str] = "ssl"
    cacheable: ClassVar[bool] = True

    def __init__(
        self,
        *,
        path: str | os.PathLike[str],
        label_sets: Sequence[str] = ("km",),
        label_rate: float | None = None,
        min_sample_size: int | None = None,
    ) -> None:
        self.path = absolute(path)
        self.label_sets = list(label_sets)
        self.label_rate = label_rate
        self.min_sample_size = min_sample_size or 0
        super().__init__(
            {
                "path": self.path,
                "label_sets": self.label_sets,
                "label_rate": label_rate,
                "min_sample_size": min_sample_size,
            }
        )

    @property
    def splits(self) -> tuple[str, ...]:
        names = {name.removesuffix(".tsv") for name in self._files() if name.endswith(".tsv")}
        return tuple(sorted(names, key=lambda name: (name != "train", name)))

    def _files(self) -> list[str]:
        return list_files(self.path) if self.path.is_dir() else []

    def problems(self) -> list[str]:
        expected = "a folder with train.tsv, train.km, dict.km.txt (s3prl-mtl cluster writes it)"
        missing = self.missing_folder(self.path, expected, "path")
        if missing:
            return missing
        if not self.splits:
            missing.append(self.problem(self.path, "has no list of audio", "train.tsv", "path"))
        for name in self.label_sets:
            files = [self.dictionary(name), *(self.labels(split, name) for split in self.splits)]
            for file in files:
                missing += self.missing_file(
                    file, f"a file of the label set {name!r}", "label_sets"
                )
        return missing

    def dictionary(self, label_set: str) -> Path:
        """The file with the classes of a label set."""
        return self.path / f"dict.{label_set}.txt"

    def labels(self, split: str, label_set: str) -> Path:
        """The file with the labels of a split."""
        return self.path / f"{split}.{label_set}"

    def utterances(self, split: str) -> list[Utterance]:
        """The files of a split that are long enough, in the order of the list.

        Raises:
            UserError: as :meth:`Corpus.utterances`; or labels that do not belong to the audio.
        """
        self.check_split(split)
        tsv = self.path / f"{split}.tsv"
        offsets, rates = [], []
        for label_set in self.label_sets:
            km = self.labels(split, label_set)
            classes = read_dictionary(self.dictionary(label_set))
            found = read_unit_labels(tsv, km, label_rate=self.label_rate, classes=classes)
            offsets.append(_line_offsets(km))
            rates.append(found.label_rate)
        return [
            Utterance(
                name,
                found.root / name,
                {
                    "samples": samples,
                    "offsets": [lines[number] for lines in offsets],
                    "rates": rates,
                },
                source=f"{tsv}, line {number + 2}",
            )
            for number, (name, samples) in enumerate(found.files)
            if samples >= self.min_sample_size
        ]

    def read(self, split: str, label_set: str, offset: int) -> list[str]:
        """The classes of the frames of an utterance.

        Args:
            split: of the utterance.
            label_set: one of `label_sets`.
            offset: of its line, in bytes.
        """
        with self.labels(split, label_set).open("rb") as file:
            file.seek(offset)
            return file.readline().decode().split()

    def label_space(self) -> dict[str, Any]:
        """`label_rate`, per second; `dictionaries`: the classes of each label set.

        Raises:
            UserError: a file is missing or malformed, or label sets have different rates.
        """
        split = self.splits[0]
        rates = [
            read_unit_labels(
                self.path / f"{split}.tsv", self.labels(split, name), label_rate=self.label_rate
            ).label_rate
            for name in self.label_sets
        ]
        if len(set(rates)) > 1:
            raise UserError(
                f"The label sets have different rates: {', '.join(f'{rate:g}' for rate in rates)}.",
                where=str(self.path),
                fix="Use label sets with one rate.",
                code="corpus-inconsistent",
            )
        dictionaries = {name: read_dictionary(self.dictionary(name)) for name in self.label_sets}
        return {"label_rate": rates[0], "dictionaries": dictionaries}

    def classes(self, labels: Mapping[str, Any]) -> list[str]:
        return []


def _line_offsets(path: Path) -> list[int]:
    """The byte offset of each line of a file."""
    with path.open("rb") as file:
        return [0, *accumulate(len(line) for line in file)][:-1]
