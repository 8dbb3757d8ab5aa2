"""Libri2Mix in Kaldi format, for speaker diarization.

Layout, in each of `train/`, `dev/`, `test/`::

    wav.scp     <recording> <path>            absolute, or relative to the folder
    segments    <utterance> <recording> <start> <end>     seconds
    utt2spk     <utterance> <speaker>
    reco2dur    <recording> <duration>        seconds
    spk2utt     <speaker> <utterance> ...     read where there is no utt2spk
    rttm        SPEAKER <recording> 1 <start> <duration> ...     compared with segments

Where there is neither utt2spk nor spk2utt, the names of the utterances state the speakers, if all
of them are `<speaker>-<recording>...`.

Paths of another machine are found below the data folder by their last components
(:class:`s3prl_mtl.data.MovedFiles`), also in another audio format.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from s3prl_mtl.data import (
    MINIMUM_SAMPLES,
    SAMPLE_RATE,
    Corpus,
    Finding,
    MovedFiles,
    Official,
    Utterance,
    absolute,
    is_file,
    note_read,
    read_lines,
)
from s3prl_mtl.errors import UserError

FILES = ("wav.scp", "segments", "utt2spk", "reco2dur")
TOLERANCE_SECONDS = 0.1
"""Largest difference of times in metadata files that rounding explains."""
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
    cacheable: ClassVar[bool] = True
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
                if name == "utt2spk" and not _has_utt2spk(folder):
                    continue  # the speakers are in spk2utt, or in the names
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
        moved = MovedFiles(self.root)
        found: list[Utterance] = []
        seen: set[str] = set()
        for number, recording, location in _table_lines(folder / "wav.scp"):
            if recording in seen:
                continue  # a finding
            seen.add(recording)
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
            source = f"{folder / 'wav.scp'}, line {number}"
            if not is_file(path):
                located = moved.find(location)
                path, source = (
                    (located, source) if located else (path, f"{source}; {moved.without_result}")
                )
            spoken = segments.get(recording, [])
            whole = split != "train"
            parts = chunks(frames, self.chunk_size, self.frame_shift)
            for start, end in [(0, frames)] if whole else parts:
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
                        source=source,
                    )
                )
        return found

    def label_space(self) -> dict[str, Any]:
        return {"speakers_per_recording": self.num_speakers}

    def official(self, split: str) -> Official | None:
        return PUBLISHED.get(split)

    def findings(self, split: str) -> list[Finding]:
        """Contradictions between the tables of a split."""
        folder = self.root / split
        findings = [
            *self._repeated_names(folder / "wav.scp", "recordings"),
            *self._repeated_names(folder / "reco2dur", "recordings"),
            *(
                self._repeated_names(folder / "utt2spk", "utterances")
                if _has_utt2spk(folder)
                else []
            ),
        ]
        recordings = _read_table(folder / "wav.scp")
        durations = {
            name: _seconds(text, folder / "reco2dur", name)
            for name, text in _read_table(folder / "reco2dur").items()
        }
        lines = list(_segment_lines(folder / "segments"))
        findings += _segment_findings(lines, recordings, durations, folder / "segments")
        spoken = {line.recording for line in lines}
        findings += self._speaker_findings(split, lines)
        findings += _rttm_findings(folder / "rttm", lines)
        silent = [name for name in recordings if name not in spoken]
        if silent:
            findings.append(
                Finding(
                    f"{len(silent)} of {len(recordings)} recordings of split {split!r} have no "
                    "segment: their labels contain no speech.",
                    where=f"{folder / 'segments'}: {silent[0]}",
                    fix="Complete the segments, unless these recordings are silent.",
                    code="corpus-incomplete",
                    certain=len(silent) == len(recordings),
                )
            )
        return findings

    def _speaker_findings(self, split: str, lines: Sequence[_SegmentLine]) -> list[Finding]:
        """Too few speakers in every recording, and tables that disagree on a speaker."""
        folder = self.root / split
        speakers = _read_speakers(folder)
        heard: dict[str, set[str]] = defaultdict(set)
        for line in lines:
            heard[line.recording].add(speakers.get(line.utterance, ""))
        findings = []
        if heard and max(map(len, heard.values())) < self.num_speakers:
            name, voices = next(iter(heard.items()))
            findings.append(
                Finding(
                    f"Every recording of split {split!r} has segments of fewer than "
                    f"{self.num_speakers} speakers.",
                    where=f"{folder / 'segments'}: {name}, {', '.join(sorted(voices))}",
                    fix="Check the speakers of the utterances, or set sd's `datarc.num_speakers`.",
                    certain=True,
                )
            )
        if _has_utt2spk(folder) and (folder / "spk2utt").is_file():
            table = _from_spk2utt(folder)
            differ = [u for u, speaker in speakers.items() if table.get(u, speaker) != speaker]
            if differ:
                findings.append(
                    Finding(
                        f"{len(differ)} of {len(speakers)} utterances of split {split!r} have "
                        "another speaker in spk2utt than in utt2spk.",
                        where=f"{folder / 'spk2utt'}: {differ[0]}",
                        fix="Use both from one preparation of the corpus, or remove spk2utt.",
                        certain=True,
                    )
                )
        return findings

    def _repeated_names(self, path: Path, names: str) -> list[Finding]:
        return self.repeated(path, _table_lines(path), names)

    def duration_findings(self, split: str, audio: Mapping[str, float]) -> list[Finding]:
        """A finding if `reco2dur` is shorter than the audio, of which the rest would be unused.

        The scan of the split reports recordings that are shorter than `reco2dur`.

        Args:
            split: name of the split.
            audio: seconds of audio of each recording.
        """
        path = self.root / split / "reco2dur"
        stated = {name: _seconds(text, path, name) for name, text in _read_table(path).items()}
        cut_off = [
            (name, seconds, stated[name])
            for name, seconds in audio.items()
            if seconds - stated[name] > TOLERANCE_SECONDS
        ]
        if not cut_off:
            return []
        name, seconds, shorter = cut_off[0]
        return [
            Finding(
                f"{len(cut_off)} of {len(audio)} recordings of split {split!r} are longer than "
                "reco2dur states: their ends would not be used.",
                where=f"{path}: {name} has {shorter:g} s, its audio {seconds:.2f} s",
                fix="Write reco2dur from the audio.",
                certain=True,
            )
        ]

    def notes(self) -> list[str]:
        notes = []
        for split in self.splits:
            folder = self.root / split
            note_read(folder)
            lines = [] if not folder.is_dir() else list(_table_lines(folder / "wav.scp"))
            moved = MovedFiles(self.root)
            elsewhere = [(n, path) for _, n, path in lines if not is_file(absolute(folder / path))]
            found = [(path, file) for _, path in elsewhere if (file := moved.find(path))]
            if found:
                path, file = found[0]
                notes.append(
                    f"{len(found)} of {len(lines)} paths of {folder / 'wav.scp'} do not exist and "
                    f"are taken for files below {self.root}; {path} is {file}"
                )
        return notes

    def _read_segments(self, folder: Path) -> dict[str, list[Segment]]:
        speakers = _read_speakers(folder)
        path = folder / "segments"
        spoken: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
        for line in _segment_lines(path):
            if line.utterance not in speakers:
                raise UserError(
                    f"sd: utterance {line.utterance} has no speaker.",
                    where=f"{path}, line {line.number}",
                    fix=f"Add it to {folder / ('utt2spk' if _has_utt2spk(folder) else 'spk2utt')}.",
                    code="corpus-incomplete",
                )
            spoken[line.recording].append((speakers[line.utterance], line.start, line.end))
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


def chunks(frames: int, size: int, frame_shift: int) -> Iterator[tuple[int, int]]:
    """SUPERB's rule: (start, end) of consecutive chunks of a recording, in label frames.

    The last chunk is the remainder, unless it is too short for the encoder.

    Args:
        frames: of the recording.
        size: frames of a chunk.
        frame_shift: samples in a frame.
    """
    for start in range(0, frames, size):
        end = min(start + size, frames)
        if (end - start) * frame_shift >= MINIMUM_SAMPLES:
            yield start, end


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


@dataclass(frozen=True)
class _SegmentLine:
    """A line of `segments`."""

    number: int
    utterance: str
    recording: str
    start: float
    end: float


def _segment_lines(path: Path) -> Iterator[_SegmentLine]:
    for number, line in read_lines(path):
        fields = line.split()
        if len(fields) != 4:
            raise UserError(
                f"sd: {line.strip()!r} is not a segment.",
                where=f"{path}, line {number}",
                fix="Each line is `<utterance> <recording> <start> <end>`.",
                code="corpus-malformed",
            )
        utterance, recording, start, end = fields
        times = _seconds(start, path, utterance), _seconds(end, path, utterance)
        yield _SegmentLine(number, utterance, recording, *times)


def _segment_findings(
    lines: Sequence[_SegmentLine],
    recordings: Mapping[str, str],
    durations: Mapping[str, float],
    path: Path,
) -> list[Finding]:
    """Segments of unknown recordings, and segments with impossible times."""
    known = [line for line in lines if line.recording in recordings]
    ends = {line: durations.get(line.recording, math.inf) for line in known}
    counts = Counter(line.utterance for line in lines)
    cases = (
        (
            [line for line in lines if line.recording not in recordings],
            "are of recordings that are not in wav.scp",
            True,
        ),
        (
            [line for line in known if line.end > ends[line] + TOLERANCE_SECONDS],
            "end after their recording (reco2dur)",
            True,
        ),
        (
            [line for line in known if ends[line] < line.end <= ends[line] + TOLERANCE_SECONDS],
            f"end up to {TOLERANCE_SECONDS} s after their recording (reco2dur)",
            False,
        ),
        ([line for line in lines if line.end <= line.start], "do not end after they start", True),
        ([line for line in lines if counts[line.utterance] > 1], "share their name", False),
    )
    return [
        Finding(
            f"{len(wrong)} of {len(lines)} segments {what}.",
            where=f"{path}, line {wrong[0].number}: {wrong[0].utterance} of {wrong[0].recording}",
            fix="Use segments, wav.scp and reco2dur from one preparation of the corpus.",
            certain=certain,
        )
        for wrong, what, certain in cases
        if wrong
    ]


def _rttm_findings(path: Path, lines: Sequence[_SegmentLine]) -> list[Finding]:
    """Recordings with other times of speech in `rttm`, if it exists, than in `segments`."""
    note_read(path)
    if not path.is_file():
        return []
    stated: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _, line in read_lines(path):
        kind, recording, _, start, duration, *_ = [*line.split(), *([""] * 5)]
        if kind != "SPEAKER":
            continue
        try:
            stated[recording].append((float(start), float(start) + float(duration)))
        except ValueError:
            stated[recording].append((math.nan, math.nan))
    spoken: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for segment in lines:
        spoken[segment.recording].append((segment.start, segment.end))
    differ = [
        name for name in sorted({*stated, *spoken}) if not _same_times(stated[name], spoken[name])
    ]
    if not differ:
        return []
    return [
        Finding(
            f"{len(differ)} of {len({*stated, *spoken})} recordings have other times of speech in "
            "rttm than in segments. Those of segments are used.",
            where=f"{path}: {differ[0]}",
            fix="Use both from one preparation of the corpus, or remove rttm.",
        )
    ]


def _same_times(
    first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]
) -> bool:
    """Whether two lists of (start, end) are the same up to rounding, in any order."""
    return len(first) == len(second) and all(
        abs(one - other) <= TOLERANCE_SECONDS
        for pair in zip(sorted(first), sorted(second), strict=True)
        for one, other in zip(*pair, strict=True)
    )


def _has_utt2spk(folder: Path) -> bool:
    """Whether the speakers are in `utt2spk`, which is then required."""
    note_read(folder)
    return (folder / "utt2spk").exists() or not (
        (folder / "spk2utt").exists() or _speakers_of_names(folder / "segments")
    )


def _read_speakers(folder: Path) -> Mapping[str, str]:
    """The speaker of each utterance, from `utt2spk`, `spk2utt` or the names of the utterances."""
    if _has_utt2spk(folder):
        return _read_table(folder / "utt2spk")
    if (folder / "spk2utt").exists():
        return _from_spk2utt(folder)
    return _speakers_of_names(folder / "segments")


def _speakers_of_names(path: Path) -> dict[str, str]:
    """The speakers of utterances named `<speaker>-<recording>...`; empty if others are among
    them."""
    if not path.is_file():
        return {}
    speakers: dict[str, str] = {}
    for line in _segment_lines(path):
        speaker, separator, _ = line.utterance.partition(f"-{line.recording}")
        if not separator or not speaker:
            return {}
        speakers[line.utterance] = speaker
    return speakers


def _from_spk2utt(folder: Path) -> Mapping[str, str]:
    speakers = _read_table(folder / "spk2utt")
    return {utterance: name for name, listed in speakers.items() for utterance in listed.split()}


def _table_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, name and value of each line of a Kaldi table; values may contain spaces."""
    for number, line in read_lines(path):
        fields = line.strip().split(None, 1)
        if len(fields) != 2:
            raise UserError(
                f"sd: {line.strip()!r} has one column.",
                where=f"{path}, line {number}",
                fix="Each line is a name, a space and a value.",
                code="corpus-malformed",
            )
        yield number, fields[0], fields[1]


def _read_table(path: Path) -> Mapping[str, str]:
    """The two columns of a Kaldi table; of several lines of one name, the first."""
    table: dict[str, str] = {}
    for _, name, value in _table_lines(path):
        table.setdefault(name, value)
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
