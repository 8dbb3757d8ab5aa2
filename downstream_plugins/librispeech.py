"""Read LibriSpeech's folders, for `asr` and `pr`.

::

    <set>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac
    <set>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt     one line an utterance: <id> WORDS
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from s3prl_mtl.data import Corpus, Official, is_audio, read_lines, walk_files
from s3prl_mtl.errors import UserError

logger = logging.getLogger(__name__)

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


def read_set(folder: Path) -> list[Transcript]:
    """The utterances of one set such as `train-clean-100`, sorted by path.

    Raises:
        UserError: the folder cannot be listed, or a transcript has no words.
    """
    transcripts: list[Transcript] = []
    names = list(walk_files(folder))
    audio = {PurePosixPath(name).stem: name for name in names if is_audio(name)}
    for name in names:
        if not name.endswith(TRANSCRIPT_SUFFIX):
            continue
        for number, line in read_lines(folder / name):
            identifier, _, text = line.strip().partition(" ")
            source = f"{folder / name}, line {number}"
            if not text.strip():
                raise UserError(
                    f"The transcript of {identifier} has no words.",
                    where=source,
                    fix="Each line is `<utterance> <WORDS>`.",
                    code="corpus-malformed",
                )
            # Without an audio file, the utterance counts as unreadable.
            default = str(PurePosixPath(name).with_name(f"{identifier}.flac"))
            path = folder / audio.pop(identifier, default)
            words = " ".join(text.upper().split())
            transcripts.append(Transcript(identifier, path, words, source))
    if audio:
        logger.warning(
            "%s: %d audio files have no transcript, first %s",
            folder,
            len(audio),
            next(iter(audio.values())),
        )
    return transcripts


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
