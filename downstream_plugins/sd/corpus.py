"""Libri2Mix in Kaldi format, for speaker diarization.

Layout, in each of `train/`, `dev/`, `test/`::

    wav.scp     <recording> <path>            absolute, or relative to the folder
    segments    <utterance> <recording> <start> <end>     seconds
    utt2spk     <utterance> <speaker>
    reco2dur    <recording> <duration>        seconds
    spk2utt, rttm                             not read
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from s3prl_mtl.data import (
    MINIMUM_SAMPLES,
    SAMPLE_RATE,
    Corpus,
    Official,
    Utterance,
    absolute,
    read_lines,
)
from s3prl_mtl.errors import UserError

FILES = ("wav.scp", "segments", "utt2spk", "reco2dur")
PUBLISHED = {"dev": Official(3000), "test": Official(3000)}
"""Recordings; train (13 900 recordings of train-clean-100) is cut into chunks."""

Segment = tuple[int, float, float]
"""(speaker_index, start_seconds, end_seconds) in the recording."""


class Libri2Mix(Corpus):
    """Libri2Mix: overlapping speech of two readers of LibriSpeech.

    The splits are the folders. Train is cut into chunks of 2000 label frames (20 s), including a
    shorter last chunk; dev and test are whole recordings. Speakers are numbered by name within each
    recording. Labels: `segments`, a list of [speaker_index, start_seconds, end_seconds] in the
    recording; `start_frame` and `frames`, the label frames of the utterance (:func:`frame_labels`
    converts the three to targets); `recording`, its name.

    Args:
        data_dir: the folder with `train`, `dev`, `test`.
        num_speakers: speakers in each recording.
        chunk_size: label frames in a training chunk.
        frame_shift: samples (at 16 kHz) in a label frame.
    """

    title: ClassVar[str] = "Libri2Mix"
    task: ClassVar[str] = "sd"
    splits: tuple[str, ...] = ("train", "dev", "test")

    def __init__(
        self,
        *,
        data_dir: str | os.PathLike[str],
        num_speakers: int = 2,
        chunk_size: int = 2000,
        frame_shift: int = 160,
    ) -> None:
        self.root = absolute(data_dir)
        self.num_speakers = num_speakers
        self.chunk_size = chunk_size
        self.frame_shift = frame_shift
        super().__init__(
            {
                "data_dir": self.root,
                "num_speakers": num_speakers,
                "chunk_size": chunk_size,
                "frame_shift": frame_shift,
            }
        )

    def problems(self) -> list[str]:
        expected = f"{self.title} in Kaldi form (train/, dev/, test/)"
        problems = self.missing_folder(self.root, expected, "data_dir")
        if problems:
            return problems
        for split in self.splits:
            folder = self.root / split
            found = self.missing_folder(folder, f"the split {split} in Kaldi form", "data_dir")
            for name in () if found else FILES:
                found += self.missing_file(folder / name, f"Kaldi's {name}", "data_dir")
                if not found and (folder / name).stat().st_size == 0:
                    found.append(
                        self.problem(folder / name, "is empty", f"Kaldi's {name}", "data_dir")
                    )
            problems += found
        return problems

    def utterances(self, split: str) -> list[Utterance]:
        """The chunks (train) or recordings (dev, test) of a split, in the order of `wav.scp`.

        Raises:
            UserError: as :meth:`Corpus.utterances`; also more speakers than `num_speakers`.
        """
        self.check_split(split)
        folder = self.root / split
        durations = _read_table(folder / "reco2dur")
        segments = self._read_segments(folder)
        found: list[Utterance] = []
        for recording, location in _read_table(folder / "wav.scp").items():
            if recording not in durations:
                raise UserError(
                    f"sd: recording {recording} has no duration.",
                    where=str(folder / "reco2dur"),
                    fix="Add a line `<recording> <seconds>`.",
                    code="corpus-incomplete",
                )
            seconds = _seconds(durations[recording], folder / "reco2dur", recording)
            frames = int(seconds * SAMPLE_RATE / self.frame_shift)
            path = _audio_path(folder, recording, location)
            spoken = segments.get(recording, [])
            whole = split != "train"
            for start, end in [(0, frames)] if whole else self.chunks(frames):
                labels = {
                    "recording": recording,
                    "segments": [list(segment) for segment in spoken],
                    "start_frame": start,
                    "frames": end - start,
                }
                found.append(
                    Utterance(
                        recording if whole else f"{recording}-{start:06d}",
                        path,
                        labels,
                        start_seconds=start * self.frame_shift / SAMPLE_RATE,
                        duration_seconds=(end - start) * self.frame_shift / SAMPLE_RATE,
                    )
                )
        return found

    def chunks(self, frames: int) -> Iterator[tuple[int, int]]:
        """SUPERB's rule: (start, end) of consecutive chunks of a recording, in label frames.

        The last chunk is the remainder, unless it is too short for the encoder.
        """
        for start in range(0, frames, self.chunk_size):
            end = min(start + self.chunk_size, frames)
            if (end - start) * self.frame_shift >= MINIMUM_SAMPLES:
                yield start, end

    def label_space(self) -> dict[str, Any]:
        return {"speakers_per_recording": self.num_speakers}

    def official(self, split: str) -> Official | None:
        return PUBLISHED.get(split)

    def _read_segments(self, folder: Path) -> dict[str, list[Segment]]:
        speakers = _read_table(folder / "utt2spk")
        path = folder / "segments"
        spoken: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
        for number, line in read_lines(path):
            fields = line.split()
            where = f"{path}, line {number}"
            if len(fields) != 4:
                raise UserError(
                    f"sd: {line.strip()!r} is not a segment.",
                    where=where,
                    fix="Each line is `<utterance> <recording> <start> <end>`.",
                    code="corpus-malformed",
                )
            utterance, recording, start, end = fields
            if utterance not in speakers:
                raise UserError(
                    f"sd: utterance {utterance} has no speaker.",
                    where=where,
                    fix=f"Add it to {folder / 'utt2spk'}.",
                    code="corpus-incomplete",
                )
            begin, finish = _seconds(start, path, utterance), _seconds(end, path, utterance)
            spoken[recording].append((speakers[utterance], begin, finish))
        return {recording: self._number(recording, s, path) for recording, s in spoken.items()}

    def _number(
        self, recording: str, spoken: Sequence[tuple[str, float, float]], path: Path
    ) -> list[Segment]:
        names = sorted({speaker for speaker, _, _ in spoken})
        if len(names) > self.num_speakers:
            raise UserError(
                f"sd: recording {recording} has {len(names)} speakers, more than "
                f"{self.num_speakers}: {', '.join(names)}.",
                where=str(path),
                fix="Set sd's `datarc.num_speakers`, or take the recording out.",
                code="invalid-value",
            )
        return [(names.index(speaker), start, end) for speaker, start, end in spoken]


def frame_labels(
    segments: Sequence[Sequence[float]],
    start_frame: int,
    frames: int,
    frame_shift: int = 160,
    rate: int = SAMPLE_RATE,
    speakers: int = 2,
) -> Tensor:
    """Speaker activity in each label frame of a segment of a recording.

    Speech covers the frames from `start` to before `end`, both rounded to the nearest frame
    (halves to even). SUPERB's code omits speech that covers a whole chunk; here it is marked. No
    speech segment of Libri2Mix is that long.

    Args:
        segments: (speaker_index, start_seconds, end_seconds) each.
        start_frame: first label frame of the result.
        frames: number of label frames of the result.
        frame_shift: samples in a label frame.
        rate: sample rate of `frame_shift`, in Hz.
        speakers: number of columns.

    Returns:
        (frames, speakers), float32, 1 where a speaker speaks and 0 elsewhere.
    """
    labels = torch.zeros(frames, speakers)
    for speaker, start, end in segments:
        first = round(start * rate / frame_shift) - start_frame
        last = round(end * rate / frame_shift) - start_frame
        labels[max(first, 0) : max(last, 0), int(speaker)] = 1.0
    return labels


def _read_table(path: Path) -> Mapping[str, str]:
    """The two columns of a Kaldi table; the second may contain spaces."""
    table: dict[str, str] = {}
    for number, line in read_lines(path):
        fields = line.strip().split(None, 1)
        if len(fields) != 2:
            raise UserError(
                f"sd: {line.strip()!r} has one column.",
                where=f"{path}, line {number}",
                fix="Each line is a name, a space and a value.",
                code="corpus-malformed",
            )
        table[fields[0]] = fields[1]
    return table


def _seconds(text: str, path: Path, name: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(
            f"sd: {text!r} is not a time in seconds.",
            where=f"{path}, {name}",
            fix="Set a number.",
            code="corpus-malformed",
        )
    return seconds


def _audio_path(folder: Path, recording: str, location: str) -> Path:
    if location.endswith("|"):
        raise UserError(
            f"sd: the audio of {recording} is a command; commands are not run.",
            where=str(folder / "wav.scp"),
            fix="Write the audio to a file and name that.",
            code="not-supported",
        )
    return absolute(folder / location)
