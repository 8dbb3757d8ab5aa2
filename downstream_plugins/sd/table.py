"""Own data for diarization: a table of recordings with `segments`, or RTTM files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from downstream_plugins.sd.corpus import Segment, chunks
from s3prl_mtl.data import (
    SAMPLE_RATE,
    Corpus,
    Row,
    TableCorpus,
    Utterance,
    absolute,
    note_read,
    read_lines,
    seconds,
)
from s3prl_mtl.errors import UserError, nearest

Spoken = list[tuple[str, float, float]]
"""Speaker, start and end in seconds."""

OVER_SECONDS = 0.5
"""Tolerance for segments that end after their recording: times in files are rounded."""


class RecordingTable(TableCorpus):
    """Recordings, each with who speaks when, in seconds from its start.

    `segments` is a list of `[speaker, start, end]` or of objects with these keys (in CSV as JSON);
    `rttm` names a file, relative to the table. The first split is cut into chunks.

    Args:
        manifests: the table of each split.
        num_speakers: the most speakers of a recording.
        chunk_size: label frames in a training chunk.
        frame_shift: samples (at 16 kHz) in a label frame.
    """

    task: ClassVar[str] = "sd"
    required = ("duration",)
    optional = ("segments", "rttm")

    def __init__(
        self,
        manifests: Mapping[str, str | os.PathLike[str]],
        num_speakers: int = 2,
        chunk_size: int = 2000,
        frame_shift: int = 160,
    ) -> None:
        self.num_speakers = num_speakers
        self.chunk_size = chunk_size
        self.frame_shift = frame_shift
        self._rttm_files: dict[Path, dict[str, Spoken]] = {}
        self._rttm_rows: dict[Path, dict[str, bool]] = {}
        super().__init__(
            manifests, num_speakers=num_speakers, chunk_size=chunk_size, frame_shift=frame_shift
        )

    def labels_of(self, row: Row) -> dict[str, Any]:
        spoken = self._spoken(row)
        names = sorted({speaker for speaker, _, _ in spoken})
        if len(names) > self.num_speakers:
            raise UserError(
                f"The recording has {len(names)} speakers, more than {self.num_speakers}.",
                where=row.source,
                fix="Set sd's `datarc.num_speakers`, or take the recording out.",
                code="invalid-value",
            )
        segments: list[Segment] = [(names.index(s), start, end) for s, start, end in spoken]
        return {"segments": [list(segment) for segment in segments]}

    def utterances(self, split: str) -> list[Utterance]:
        """Recordings, or in the first split their chunks."""
        found = []
        for whole in super().utterances(split):
            assert whole.duration_seconds is not None
            frames = int(whole.duration_seconds * SAMPLE_RATE / self.frame_shift)
            is_whole = split != self.splits[0]
            parts = chunks(frames, self.chunk_size, self.frame_shift)
            for start, end in [(0, frames)] if is_whole else parts:
                labels = {"recording": whole.id, "start_frame": start, "frames": end - start}
                frame_seconds = self.frame_shift / SAMPLE_RATE
                found.append(
                    Utterance(
                        whole.id if is_whole else f"{whole.id}-{start:06d}",
                        whole.path,
                        {**whole.labels, **labels},
                        start_seconds=whole.start_seconds + start * frame_seconds,
                        duration_seconds=(end - start) * frame_seconds,
                        source=whole.source,
                    )
                )
        return found

    @classmethod
    def columns_of(cls, labels: Mapping[str, Any]) -> dict[str, Any]:
        return {"segments": labels["segments"]}

    @classmethod
    def rows_of(cls, corpus: Corpus, split: str) -> list[dict[str, Any]]:
        """Whole recordings, also of the split that is cut into chunks."""
        rows: dict[str, dict[str, Any]] = {}
        for utterance in corpus.utterances(split):
            name = utterance.labels["recording"]
            row = rows.setdefault(
                name,
                {
                    "id": name,
                    "path": str(utterance.path),
                    "duration": 0.0,
                    **cls.columns_of(utterance.labels),
                },
            )
            row["duration"] += utterance.duration_seconds or 0.0
        return list(rows.values())

    def label_space(self) -> dict[str, Any]:
        return {"speakers_per_recording": self.num_speakers}

    def _spoken(self, row: Row) -> Spoken:
        if "segments" in row.values:
            value = row.values["segments"]
            try:
                listed = json.loads(value) if isinstance(value, str) else value
                spoken = [_segment(entry) for entry in listed]
            except (TypeError, ValueError, KeyError) as error:
                raise UserError(
                    f"The segments cannot be read: {error}.",
                    where=row.source,
                    fix='For example: [["ann", 0.0, 2.5], ["bob", 2.1, 4.0]].',
                    code="corpus-malformed",
                ) from error
        elif "rttm" in row.values:
            spoken = self._from_rttm(row)
        else:
            raise UserError(
                "The row has neither `segments` nor `rttm`.",
                where=row.source,
                code="corpus-malformed",
            )
        length = seconds(row.values["duration"], row.source)
        for speaker, start, end in spoken:
            if not 0 <= start < end <= length + OVER_SECONDS:
                raise UserError(
                    f"The segment of {speaker} from {start:g} to {end:g} s is not within the "
                    f"recording of {length:g} s.",
                    where=row.source,
                    fix="Times are seconds from the start of the recording.",
                    code="corpus-inconsistent",
                )
        return spoken

    def _from_rttm(self, row: Row) -> Spoken:
        """The segments of a recording; of all lines if the file has only one recording, and no
        other row names it."""
        table = Path(row.source.rpartition(", ")[0])
        path = absolute(table.parent / row.text("rttm"))
        note_read(path)
        if path not in self._rttm_files:
            self._rttm_files[path] = _read_rttm(path)
        found = self._rttm_files[path]
        named = row.text("id") if "id" in row.values else Path(row.text("path")).stem
        rows = self._rttm_rows.setdefault(path, {})
        rows[row.source] = named in found
        if len(found) == 1 and len(rows) > 1 and not all(rows.values()):
            raise UserError(
                f"{len(rows)} rows name the file, which has segments of one recording only, "
                f"{next(iter(found))!r}.",
                where=f"{path}, for {row.source}",
                fix="Give each recording its own file, or name it there as in the column `id`.",
                code="corpus-inconsistent",
            )
        if named not in found and len(found) != 1:
            raise UserError(
                f"The file has no segment of the recording {named!r}.",
                where=f"{path}, for {row.source}",
                fix=f"Name it as in the column `id`. {nearest(named, list(found))}",
                code="corpus-inconsistent",
            )
        return found[named] if named in found else next(iter(found.values()))


def _segment(entry: Mapping[str, Any] | Sequence[Any]) -> tuple[str, float, float]:
    if isinstance(entry, Mapping):
        return str(entry["speaker"]), float(entry["start"]), float(entry["end"])
    speaker, start, end = entry
    return str(speaker), float(start), float(end)


def _read_rttm(path: Path) -> dict[str, Spoken]:
    """The segments of each recording of a file."""
    spoken: dict[str, Spoken] = {}
    for number, line in read_lines(path):
        fields = line.split()
        if fields[0] != "SPEAKER":
            continue
        try:
            name, start, length, speaker = fields[1], float(fields[3]), float(fields[4]), fields[7]
        except (IndexError, ValueError) as error:
            raise UserError(
                "The line is not `SPEAKER <recording> 1 <start> <seconds> <NA> <NA> <speaker>`.",
                where=f"{path}, line {number}",
                code="corpus-malformed",
            ) from error
        spoken.setdefault(name, []).append((speaker, start, start + length))
    return spoken
