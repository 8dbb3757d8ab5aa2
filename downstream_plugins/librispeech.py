"""Read LibriSpeech's folders, for `asr` and `pr`.

::

    <set>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac
    <set>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt     one line an utterance: <id> WORDS

Audio may be in another format or folder of the set: it is found by the utterance's name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from s3prl_mtl.data import (
    AudioIndex,
    Corpus,
    Finding,
    Official,
    is_audio,
    read_lines,
    walk_files,
)

TRANSCRIPT_SUFFIX = ".trans.txt"

PUBLISHED = {
    "train-clean-100": Official(28_539, 100.6, 251),
    "train-clean-360": Official(104_014, 363.6, 921),
    "train-other-500": Official(148_688, 496.7, 1166),
    "dev-clean": Official(2703, 5.4, 40),
    "dev-other": Official(2864, 5.3, 33),
    "test-clean": Official(2620, 5.4, 40),
    "test-other": Official(2939, 5.1, 33),
}
"""The sets of OpenSLR 12: utterances, hours, speakers (Panayotov et al., 2015)."""


def published(sets: Sequence[str]) -> Official | None:
    """The size of several sets together; None if one of them is not LibriSpeech's."""
    sizes = [PUBLISHED.get(name) for name in sets]
    if not sizes or any(size is None for size in sizes):
        return None
    columns = zip(*((s.utterances, s.hours, s.speakers) for s in sizes if s), strict=True)
    return Official(*(sum(filter(None, column)) for column in columns))


def speaker_of(utterance_id: str) -> str | None:
    """The reader of `<speaker>-<chapter>-<number>`; None for other names."""
    parts = utterance_id.split("-")
    return parts[0] if len(parts) == 3 and parts[0].isdigit() else None


@dataclass(frozen=True)
class Transcript:
    """An utterance of LibriSpeech: id, audio file, upper-case words, file and line of the text."""

    id: str
    path: Path
    text: str
    source: str


MAXIMUM_EMPTY = 0.01
"""Largest fraction of transcripts without words; more is an error."""

_UNEXPECTED = re.compile(r"[^A-Z' ]")


@dataclass(frozen=True)
class LibriSet:
    """One set such as `train-clean-100`.

    Args:
        transcripts: the utterances, sorted by path.
        empty: (file and line) of transcripts without words, which are not utterances.
        index: the audio.
    """

    transcripts: list[Transcript]
    empty: list[str]
    index: AudioIndex


def read_set(folder: Path) -> LibriSet:
    """Read the transcripts of a set, and find their audio.

    Raises:
        UserError: the folder cannot be listed.
    """
    transcripts: list[Transcript] = []
    empty: list[str] = []
    names = list(walk_files(folder))
    index = AudioIndex(folder, by_name=True, files=names)
    for name in names:
        if not name.endswith(TRANSCRIPT_SUFFIX):
            continue
        for number, line in read_lines(folder / name):
            identifier, *words = line.split()
            source = f"{folder / name}, line {number}"
            if not words:
                empty.append(source)
                continue
            # Without an audio file, the utterance counts as unreadable.
            default = folder / PurePosixPath(name).with_name(f"{identifier}.flac")
            path = index.find(identifier) or default
            transcripts.append(Transcript(identifier, path, " ".join(words).upper(), source))
    return LibriSet(transcripts, empty, index)


def read_sets(root: Path, names: Sequence[str]) -> list[Transcript]:
    """The utterances of several sets."""
    return [transcript for name in names for transcript in read_set(root / name).transcripts]


def set_findings(corpus: Corpus, root: Path, names: Sequence[str]) -> list[Finding]:
    """Transcripts without words, with unexpected characters or of other names than the corpus has,
    and audio without a transcript."""
    findings: list[Finding] = []
    for name in names:
        folder = root / name
        read = read_set(folder)
        findings += corpus.doubles(read.index, name)
        foreign = [file for file in read.index.files() if _other_set(file, name)]
        if foreign:
            findings.append(
                Finding(
                    f"{len(foreign)} of {len(read.index)} audio files of {name} are in the folder "
                    "of another set within it: they would be used as its own.",
                    where=str(folder / foreign[0]),
                    fix=f"Move this folder out of {folder}.",
                    code="corpus-malformed",
                    certain=True,
                )
            )
        total = len(read.transcripts) + len(read.empty)
        if read.empty:
            findings.append(
                Finding(
                    f"{len(read.empty)} of {total} transcripts of {name} have no words and are not "
                    "used.",
                    where=read.empty[0],
                    fix="Each line is `<utterance> <WORDS>`.",
                    code="corpus-malformed",
                    certain=len(read.empty) > MAXIMUM_EMPTY * total,
                )
            )
        findings += _unexpected_characters(name, read.transcripts)
        unlike = [text for text in read.transcripts if speaker_of(text.id) is None]
        if unlike:
            findings.append(
                Finding(
                    f"{len(unlike)} of {len(read.transcripts)} transcripts of {name} are of "
                    "utterances that are not named <speaker>-<chapter>-<number>. They are used.",
                    where=f"{unlike[0].source}: {unlike[0].id}",
                    fix="Remove transcripts that are not of the corpus, unless they are intended.",
                    code="corpus-malformed",
                )
            )
        listed = {transcript.id for transcript in read.transcripts}
        # Transcripts without words have audio, too.
        others = [stem for stem in read.index if stem not in listed]
        if len(others) > len(read.empty):
            findings.append(
                Finding(
                    f"{len(others)} of {len(read.index)} audio files of {name} have no transcript "
                    "and are not used.",
                    where=str(read.index.find(others[0])),
                    fix=f"Complete the {TRANSCRIPT_SUFFIX[1:]} files.",
                    code="corpus-incomplete",
                )
            )
    return findings


def _other_set(file: str, name: str) -> bool:
    """Whether a path below a set has a folder named as another set."""
    return any(part in PUBLISHED and part != name for part in file.split("/")[:-1])


def _unexpected_characters(name: str, transcripts: Sequence[Transcript]) -> list[Finding]:
    counts: Counter[str] = Counter()
    examples: dict[str, Transcript] = {}
    for transcript in transcripts:
        for character in _UNEXPECTED.findall(transcript.text):
            counts[character] += 1
            examples.setdefault(character, transcript)
    if not counts:
        return []
    listed = ", ".join(f"{c!r} ({count} times)" for c, count in counts.most_common(10))
    affected = sum(bool(_UNEXPECTED.search(transcript.text)) for transcript in transcripts)
    example = examples[counts.most_common(1)[0][0]]
    return [
        Finding(
            f"{affected} of {len(transcripts)} transcripts of {name} have characters other than A "
            f"to Z and the apostrophe: {listed}.",
            where=f"{example.source}: {example.text[:60]}",
            fix="Spell numbers out, and remove accents and punctuation, unless they are to be "
            "recognised.",
            code="label-unknown",
        )
    ]


def layout_problems(corpus: Corpus, root: Path, sets: Mapping[str, Sequence[str]]) -> list[str]:
    """Problems with the folders of LibriSpeech that a task needs.

    Args:
        corpus: the task's corpus.
        root: its `libri_root`.
        sets: names of sets by the setting (`train`, `dev`, `test`) that lists them.
    """
    problems = corpus.missing_folder(root, f"the unpacked {corpus.title}", "libri_root")
    if problems:
        return problems
    for setting, names in sets.items():
        settings = f"libri_root` or `datarc.{setting}"
        for name in names:
            folder = root / name
            expected = f"the set {name} of {corpus.title} (<speaker>/<chapter>/*.flac, *.trans.txt)"
            found = corpus.missing_folder(folder, expected, settings)
            if not found and not _has_utterances(folder):
                what = "holds neither audio nor *.trans.txt"
                found = [corpus.problem(folder, what, expected, settings)]
            problems += found
    return problems


def _has_utterances(folder: Path) -> bool:
    """Whether a folder contains audio or transcripts; stops at the first file found."""
    return any(is_audio(name) or name.endswith(TRANSCRIPT_SUFFIX) for name in walk_files(folder))
