"""VoxCeleb1 for speaker identification.

Layout: `dev/wav` and `test/wav`, each `<speaker>/<video>/<number>.wav`; and `iden_split.txt` (the
same as `veri_test_class.txt`), one line an utterance: `<1|2|3> <speaker>/<video>/<number>.wav`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from downstream_plugins.voxceleb1 import (
    layout_problems,
    locate_audio,
    missing_audio_path,
    speaker_of,
)
from s3prl_mtl.data import Corpus, Official, Utterance, absolute, read_lines
from s3prl_mtl.errors import UserError

SPLIT_CODES = {"train": "1", "dev": "2", "test": "3"}
PUBLISHED = {
    "train": Official(138_361, speakers=1251, classes=1251),
    "dev": Official(6904, speakers=1251, classes=1251),
    "test": Official(8251, speakers=1251, classes=1251),
}
"""The identification split of VoxCeleb1 (Nagrani et al., 2017)."""


class VoxCeleb1Identification(Corpus):
    """VoxCeleb1: interviews of 1251 celebrities, with the speaker of each utterance.

    The splits are the three codes of the identification split; every speaker is in all of them.
    Labels: `class`, the speaker's id. Classes are the sorted ids of the split file, for VoxCeleb1
    id10001 to id11251 without a gap, so that class k is SUPERB's label `id - 10001`.

    Args:
        file_path: the folder with `dev/wav` and `test/wav`.
        meta_data: the file of the identification split.
    """

    title: ClassVar[str] = "VoxCeleb1"
    task: ClassVar[str] = "sid"
    splits: tuple[str, ...] = ("train", "dev", "test")

    def __init__(
        self, *, file_path: str | os.PathLike[str], meta_data: str | os.PathLike[str]
    ) -> None:
        self.root = absolute(file_path)
        self.meta_data = absolute(meta_data)
        super().__init__({"file_path": self.root, "meta_data": self.meta_data})

    def problems(self) -> list[str]:
        expected = "the identification split (iden_split.txt or veri_test_class.txt)"
        return [
            *layout_problems(self, self.root),
            *self.missing_file(self.meta_data, expected, "meta_data"),
        ]

    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split, in the order of the split file.

        Raises:
            UserError: as :meth:`Corpus.utterances`.
        """
        self.check_split(split)
        located = locate_audio(self.root)
        return [
            Utterance(
                name,
                located.get(name) or missing_audio_path(self.root, name),
                {"class": speaker_of(name)},
            )
            for code, name in self._read_split_file()
            if code == SPLIT_CODES[split]
        ]

    def label_space(self) -> dict[str, Any]:
        return {"classes": sorted({speaker_of(name) for _, name in self._read_split_file()})}

    def official(self, split: str) -> Official | None:
        return PUBLISHED[split]

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        return speaker_of(utterance_id)

    def _read_split_file(self) -> list[tuple[str, str]]:
        lines: list[tuple[str, str]] = []
        for number, line in read_lines(self.meta_data):
            fields = line.split()
            if len(fields) != 2 or fields[0] not in SPLIT_CODES.values() or "/" not in fields[1]:
                raise UserError(
                    f"sid: {line.strip()!r} is not a line of the identification split.",
                    where=f"{self.meta_data}, line {number}",
                    fix="Each line is `<1|2|3> <speaker>/<video>/<number>.wav`.",
                    code="corpus-malformed",
                )
            lines.append((fields[0], fields[1]))
        return lines
