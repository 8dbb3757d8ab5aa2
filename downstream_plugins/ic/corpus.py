"""Fluent Speech Commands for intent classification.

Layout::

    data/train_data.csv, valid_data.csv, test_data.csv   path,speakerId,transcription,action,...
    wavs/speakers/<speaker>/<utterance>.wav
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from s3prl_mtl.data import Corpus, Official, Utterance, absolute, read_lines
from s3prl_mtl.errors import UserError

SLOTS = ("action", "object", "location")
PUBLISHED = {
    "train": Official(23_132, 14.7, 77, 24),
    "valid": Official(3118, 1.9, 10, 24),
    "test": Official(3793, 2.4, 10, 24),
}
"""Utterances, hours and speakers (Lugosch et al., 2019); 6 actions, 14 objects and 4 locations."""


class FluentSpeechCommands(Corpus):
    """Fluent Speech Commands: spoken commands for smart-home devices.

    The splits are the three csv files. Labels: `action`, `object`, `location`.

    Args:
        file_path: the folder `fluent_speech_commands_dataset`.
    """

    title: ClassVar[str] = "Fluent Speech Commands"
    task: ClassVar[str] = "ic"
    splits: tuple[str, ...] = ("train", "valid", "test")

    def __init__(self, *, file_path: str | os.PathLike[str]) -> None:
        self.root = absolute(file_path)
        super().__init__({"file_path": self.root})

    def problems(self) -> list[str]:
        expected = f"the unpacked {self.title} (data/*.csv, wavs/)"
        problems = self.missing_folder(self.root, expected, "file_path")
        if problems:
            return problems
        for split in self.splits:
            path = self.root / "data" / f"{split}_data.csv"
            problems += self.missing_file(path, f"the table of the split {split}", "file_path")
        return problems + self.missing_folder(self.root / "wavs", "the audio", "file_path")

    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split, in the order of its table.

        Raises:
            UserError: as :meth:`Corpus.utterances`; also a value that train does not contain.
        """
        self.check_split(split)
        known = self.label_space()
        found: list[Utterance] = []
        for number, row in self._read_table(split):
            for slot in SLOTS:
                if row[slot] not in known[slot]:
                    raise UserError(
                        f"ic: the {slot} {row[slot]!r} does not occur in train_data.csv.",
                        where=f"{self.root / 'data' / f'{split}_data.csv'}, line {number}",
                        fix="Unpack the corpus again.",
                        code="label-unknown",
                    )
            path = PurePosixPath(row["path"])
            labels = {slot: row[slot] for slot in SLOTS}
            found.append(Utterance(f"{path.parent.name}-{path.stem}", self.root / path, labels))
        return found

    def label_space(self) -> dict[str, Any]:
        """The values of each slot in order of first appearance in the training table."""
        table = self._read_table("train")
        return {slot: list(dict.fromkeys(row[slot] for _, row in table)) for slot in SLOTS}

    def official(self, split: str) -> Official | None:
        return PUBLISHED[split]

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        return utterance_id.partition("-")[0]

    def classes(self, labels: Mapping[str, Any]) -> list[str]:
        return [f"{slot} {labels[slot]}" for slot in SLOTS]

    def declared_classes(self) -> list[str]:
        return [f"{slot} {name}" for slot, names in self.label_space().items() for name in names]

    def shared_speakers(self, first: str, second: str) -> Literal["allowed", "warning", "error"]:
        return "warning"

    def _read_table(self, split: str) -> list[tuple[int, dict[str, str]]]:
        path = self.root / "data" / f"{split}_data.csv"
        text = "\n".join(line for _, line in read_lines(path))
        reader = csv.DictReader(io.StringIO(text))
        missing = [name for name in ("path", *SLOTS) if name not in (reader.fieldnames or [])]
        if missing:
            raise UserError(
                f"ic: the table has no column {', '.join(missing)}.",
                where=str(path),
                fix="Its first line is `,path,speakerId,transcription,action,object,location`.",
                code="corpus-malformed",
            )
        rows: list[tuple[int, dict[str, str]]] = []
        for row in reader:
            if any(row[name] is None for name in ("path", *SLOTS)):
                raise UserError(
                    "ic: a line of the table has too few fields.",
                    where=f"{path}, line {reader.line_num}",
                    fix="Unpack the corpus again.",
                    code="corpus-malformed",
                )
            rows.append((reader.line_num, row))
        return rows
