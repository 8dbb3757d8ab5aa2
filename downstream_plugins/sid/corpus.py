"""VoxCeleb1 for speaker identification.

Layout: `dev/wav` and `test/wav`, each `<speaker>/<video>/<number>.wav`, or the speakers' folders in
another place (:mod:`downstream_plugins.voxceleb1`); and `iden_split.txt` (the
same as `veri_test_class.txt`), one line an utterance: `<1|2|3> <speaker>/<video>/<number>.wav`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from downstream_plugins.voxceleb1 import (
    VoxCelebFiles,
    check_speakers,
    find_files,
    layout_findings,
    layout_problems,
    listed_name,
    missing_audio_path,
    speaker_of,
)
from s3prl_mtl.data import (
    Corpus,
    Finding,
    Official,
    Utterance,
    absolute,
    audio_stem,
    listed_once,
    read_lines,
)
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
        file_path: the folder with the speakers' folders, in `dev/wav` and `test/wav` or elsewhere.
        meta_data: the file of the identification split.
    """

    title: ClassVar[str] = "VoxCeleb1"
    task: ClassVar[str] = "sid"
    cacheable: ClassVar[bool] = True
    splits: tuple[str, ...] = ("train", "dev", "test")

    def __init__(
        self, *, file_path: str | os.PathLike[str], meta_data: str | os.PathLike[str]
    ) -> None:
        self.root = absolute(file_path)
        self.meta_data = absolute(meta_data)
        super().__init__({"file_path": self.root, "meta_data": self.meta_data})

    @listed_once
    def files(self) -> VoxCelebFiles:
        """The audio files."""
        return find_files(self.root)

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
        files = self.files
        lines = self._read_split_file()
        code = SPLIT_CODES[split]
        if not any(listed == code for listed, _, _ in lines):
            raise UserError(
                f"sid: none of {len(lines)} lines has the code {code}, of the split {split!r}.",
                where=str(self.meta_data),
                fix="Each line is `<1|2|3> <speaker>/<video>/<number>.wav`.",
                code="corpus-empty",
            )
        return [
            Utterance(
                name,
                files.find(name) or missing_audio_path(files, self.root, name),
                {"class": speaker_of(name)},
                source=source,
            )
            for listed, name, source in lines
            if listed == code
        ]

    def label_space(self) -> dict[str, Any]:
        return {"classes": sorted({speaker_of(name) for _, name, _ in self._read_split_file()})}

    def findings(self, split: str) -> list[Finding]:
        """Folders and files that are not used."""
        if split != self.splits[0]:
            return []
        findings = layout_findings(self, self.files)
        listed = {audio_stem(name) for _, name, _ in self._read_split_file()}
        files = self.files
        others = [
            place.folder / name
            for place in files.places
            for name in place.index.files()
            if audio_stem(name) not in listed
        ]
        if others:
            findings.append(
                Finding(
                    f"{len(others)} audio files are not in {self.meta_data.name} and are not used.",
                    where=str(others[0]),
                    fix=f"Complete {self.meta_data}, unless their absence is intended.",
                    code="corpus-incomplete",
                )
            )
        return findings

    def notes(self) -> list[str]:
        return self.files.notes()

    def official(self, split: str) -> Official | None:
        return PUBLISHED[split]

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        return speaker_of(utterance_id)

    def _read_split_file(self) -> list[tuple[str, str, str]]:
        """The code, name and place of each line."""
        lines: list[tuple[str, str, str]] = []
        for number, line in read_lines(self.meta_data):
            fields = line.split()
            if len(fields) != 2 or fields[0] not in SPLIT_CODES.values() or "/" not in fields[1]:
                raise UserError(
                    f"sid: {line.strip()!r} is not a line of the identification split.",
                    where=f"{self.meta_data}, line {number}",
                    fix="Each line is `<1|2|3> <speaker>/<video>/<number>.wav`.",
                    code="corpus-malformed",
                )
            where = f"{self.meta_data}, line {number}"
            name = listed_name(fields[1])
            check_speakers("sid", [name], where)
            lines.append((fields[0], name, where))
        return lines
