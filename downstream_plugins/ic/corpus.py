"""Fluent Speech Commands for intent classification.

Layout::

    data/train_data.csv, valid_data.csv, test_data.csv   path,speakerId,transcription,action,...
    wavs/speakers/<speaker>/<utterance>.wav

The columns may be in any order. `None`, `NaN` and empty cells, as pandas writes them, are `none`.
Paths may be those of another machine, or name another audio format.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from s3prl_mtl.data import (
    AudioIndex,
    Corpus,
    Finding,
    MovedFiles,
    Official,
    Utterance,
    absolute,
    audio_stem,
    note_read,
    read_lines,
)
from s3prl_mtl.errors import UserError

SLOTS = ("action", "object", "location")
NONE = "none"
SPEAKER = "speakerId"
_WRITTEN_NONE = frozenset({"", "none", "nan", "null", "n/a", "<na>"})
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
    cacheable: ClassVar[bool] = True
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
        audio, moved = self._index(), MovedFiles(self.root)
        found: list[Utterance] = []
        for number, row in self._read_table(split):
            for slot in SLOTS:
                if row[slot] not in known[slot]:
                    raise UserError(
                        f"ic: the {slot} {row[slot]!r} does not occur in train_data.csv.",
                        where=f"{self._table(split)}, line {number}",
                        fix=f"Values of the training table: {', '.join(known[slot])}.",
                        code="label-unknown",
                    )
            name = PurePosixPath(row["path"])
            path = audio.find(str(name)) or moved.find(str(name))
            source = f"{self._table(split)}, line {number}"
            if path is None:
                path, source = self.root / name, f"{source}; {moved.without_result}"
            labels = {slot: row[slot] for slot in SLOTS}
            identifier = f"{name.parent.name}-{name.stem}"
            found.append(Utterance(identifier, path, labels, source=source))
        return found

    def _index(self) -> AudioIndex:
        files = AudioIndex(self.root / "wavs").every_file
        return AudioIndex(self.root, files=[f"wavs/{name}" for name in files])

    def findings(self, split: str) -> list[Finding]:
        """Other speakers in a table than in its paths; audio in no table, or in two formats."""
        return self._speaker_findings(split) + (self._audio_findings() if split == "train" else [])

    def _speaker_findings(self, split: str) -> list[Finding]:
        rows = self._read_table(split)
        others = [
            (number, row)
            for number, row in rows
            if row.get(SPEAKER) and row[SPEAKER].strip() != PurePosixPath(row["path"]).parent.name
        ]
        if not others:
            return []
        number, row = others[0]
        return [
            Finding(
                f"{len(others)} of {len(rows)} lines of the table of {split} have another speaker "
                "than the folder of their path.",
                where=f"{self._table(split)}, line {number}: {row[SPEAKER]}, {row['path']}",
                fix="Use the table of the corpus: were its columns sorted separately?",
            )
        ]

    def _audio_findings(self) -> list[Finding]:
        index = self._index()
        findings = self.doubles(index, str(self.root / "wavs"))
        for name in self.splits:
            note_read(self._table(name))
        tables = [s for s in self.splits if self._table(s).is_file()]
        listed = {_tail(row["path"]) for name in tables for _, row in self._read_table(name)}
        others = [stem for stem in index if _tail(stem) not in listed]
        if others:
            findings.append(
                Finding(
                    f"{len(others)} of {len(index)} audio files are in no table and are not used.",
                    where=str(index.find(others[0])),
                    fix="Remove them, or complete the tables.",
                    code="corpus-incomplete",
                )
            )
        return findings

    def notes(self) -> list[str]:
        index = self._index()
        paths = [row["path"] for s in self.splits for _, row in self._read_table(s)]
        elsewhere = [path for path in paths if index.find(path) is None]
        moved = MovedFiles(self.root)
        found = [(path, moved.find(path)) for path in elsewhere]
        resolved = [pair for pair in found if pair[1] is not None]
        if not resolved:
            return []
        path, file = resolved[0]
        return [
            f"{len(resolved)} of {len(paths)} paths of the tables are those of another machine; "
            f"{path} is {file}"
        ]

    def _table(self, split: str) -> Path:
        return self.root / "data" / f"{split}_data.csv"

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
        path = self._table(split)
        text = "\n".join(line for _, line in read_lines(path))
        reader = csv.DictReader(io.StringIO(text))
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        missing = [name for name in ("path", *SLOTS) if name not in reader.fieldnames]
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
                    fix=f"The columns are {', '.join(reader.fieldnames)}.",
                    code="corpus-malformed",
                )
            for slot in SLOTS:
                value = row[slot].strip()
                row[slot] = NONE if value.lower() in _WRITTEN_NONE else value
            row["path"] = row["path"].strip().replace("\\", "/")
            rows.append((reader.line_num, row))
        if not rows:
            raise UserError(
                "ic: the table has no utterance.",
                where=str(path),
                fix="Copy the table of the corpus again.",
                code="corpus-empty",
            )
        return rows


def _tail(path: str) -> str:
    """The speaker and the name of a file, which identify an utterance."""
    return "/".join(audio_stem(path).split("/")[-2:])
