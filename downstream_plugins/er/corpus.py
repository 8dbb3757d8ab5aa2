"""IEMOCAP for emotion recognition.

Layout::

    Session<1-5>/dialog/EmoEvaluation/<dialogue>.txt          lines of interest begin with `[`
    Session<1-5>/sentences/wav/<dialogue>/<utterance>.wav

A line of labels is `[start - end]<TAB>utterance<TAB>emotion<TAB>[v, a, d]`; blanks may take the
place of tabs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from downstream_plugins.er.dialogue_order import DIALOGUES
from s3prl_mtl.data import (
    AudioIndex,
    Corpus,
    Finding,
    Official,
    Utterance,
    absolute,
    list_files,
    read_lines,
)
from s3prl_mtl.errors import UserError

CLASSES = ("neu", "hap", "ang", "sad")
KNOWN_EMOTIONS = frozenset(
    {"neu", "hap", "ang", "sad", "exc", "fru", "fea", "sur", "dis", "oth", "xxx"}
)
"""The emotions of IEMOCAP's label files."""
MERGED = {"exc": "hap"}
SESSIONS = (1, 2, 3, 4, 5)
SESSION_UTTERANCES = {1: 1085, 2: 1023, 3: 1151, 4: 1031, 5: 1241}
"""Utterances of the four classes in each session of IEMOCAP."""
SPLIT_SEED = 0


@dataclass(frozen=True)
class Turn:
    """A line of labels: utterance, emotion, and the file and line of it."""

    name: str
    emotion: str
    file: Path
    number: int

    @property
    def source(self) -> str:
        return f"{self.file}, line {self.number}"


class IEMOCAP(Corpus):
    """IEMOCAP: twelve hours of acted dialogues, ten actors in five sessions.

    Four emotions are used; excitement counts as happiness. Test is the held-out session; dev is a
    fifth of the other four, drawn like in SUPERB (:func:`draw_dev`). Labels: `class`.

    Args:
        root: the folder with `Session1` to `Session5`.
        test_fold: `fold1` to `fold5`, the held-out session.
        valid_ratio: fraction of the training sessions used as dev.
    """

    title: ClassVar[str] = "IEMOCAP"
    task: ClassVar[str] = "er"
    cacheable: ClassVar[bool] = True
    splits: tuple[str, ...] = ("train", "dev", "test")

    def __init__(
        self,
        *,
        root: str | os.PathLike[str],
        test_fold: str = "fold1",
        valid_ratio: float = 0.2,
    ) -> None:
        folds = {f"fold{session}": session for session in SESSIONS}
        if test_fold not in folds:
            raise UserError(
                f"er: there is no fold {test_fold!r}.",
                where="er's `datarc.test_fold`",
                fix=f"Use one of {', '.join(folds)}.",
                code="unknown-name",
            )
        if not 0 < valid_ratio < 1:
            raise UserError(
                f"er: {valid_ratio} is not a fraction of the training data.",
                where="er's `datarc.valid_ratio`",
                fix="Set a number between 0 and 1, such as 0.2.",
                code="invalid-value",
            )
        self.root = absolute(root)
        self.test_session = folds[test_fold]
        self.valid_ratio = valid_ratio
        super().__init__({"root": self.root, "test_fold": test_fold, "valid_ratio": valid_ratio})

    def problems(self) -> list[str]:
        expected = f"the unpacked {self.title} (Session1/ to Session5/)"
        problems = self.missing_folder(self.root, expected, "root")
        if problems:
            return problems
        for session in SESSIONS:
            for folder, content in (
                (self._label_folder(session), "the emotion labels"),
                (self._audio_folder(session), "the utterances' audio"),
            ):
                problems += self.missing_folder(folder, content, "root")
        return problems

    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split, in the order of SUPERB's lists.

        Raises:
            UserError: as :meth:`Corpus.utterances`.
        """
        self.check_split(split)
        if split == "test":
            return self._session(self.test_session)
        others = self._sessions("train")
        candidates = [utterance for session in others for utterance in self._session(session)]
        train, dev = draw_dev(len(candidates), self.valid_ratio)
        return [candidates[index] for index in (train if split == "train" else dev)]

    def label_space(self) -> dict[str, Any]:
        return {"classes": list(CLASSES)}

    def official(self, split: str) -> Official | None:
        held_out = SESSION_UTTERANCES[self.test_session]
        others = sum(SESSION_UTTERANCES.values()) - held_out
        train = int((1 - self.valid_ratio) * others)
        sizes = {"train": train, "dev": others - train, "test": held_out}
        return Official(sizes[split], classes=len(CLASSES))

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        # Ses01F_impro01_M003: the second letter is that of the speaker.
        return f"{utterance_id[:5]}{utterance_id.rsplit('_', 1)[-1][:1]}"

    def _label_folder(self, session: int) -> Path:
        return self.root / f"Session{session}" / "dialog" / "EmoEvaluation"

    def _audio_folder(self, session: int) -> Path:
        return self.root / f"Session{session}" / "sentences" / "wav"

    def _sessions(self, split: str) -> list[int]:
        return [s for s in SESSIONS if (s == self.test_session) == (split == "test")]

    def _session(self, session: int) -> list[Utterance]:
        folder = self._audio_folder(session)
        audio = AudioIndex(folder, by_name=True)
        found: list[Utterance] = []
        for turn in self._turns(session):
            label = MERGED.get(turn.emotion, turn.emotion)
            if label in CLASSES:
                default = folder / turn.file.stem / f"{turn.name}.wav"
                path = audio.find(turn.name) or default
                found.append(Utterance(turn.name, path, {"class": label}, source=turn.source))
        return found

    def _turns(self, session: int) -> Iterator[Turn]:
        """The lines of labels of a session."""
        for file in self._label_files(session):
            for number, line in read_lines(file):
                if not line.startswith("["):
                    continue
                fields = line.partition("]")[2].split()
                if len(fields) < 2:
                    raise UserError(
                        "er: a line of labels has too few fields.",
                        where=f"{file}, line {number}",
                        fix="It is `[start - end]<TAB>utterance<TAB>emotion<TAB>[v, a, d]`.",
                        code="corpus-malformed",
                    )
                yield Turn(fields[0], fields[1], file, number)

    def findings(self, split: str) -> list[Finding]:
        """Sessions and label files without labels, unknown emotions, audio without a label."""
        if split == "dev":
            return []  # of the same sessions as train
        turns = {session: list(self._turns(session)) for session in self._sessions(split)}
        findings = self._label_findings(turns)
        for session, labelled in turns.items():
            folder = self._audio_folder(session)
            index = AudioIndex(folder, by_name=True)
            findings += self.doubles(index, f"session {session}")
            listed = {turn.name for turn in labelled}
            others = [name for name in index if name not in listed]
            if others and listed:
                findings.append(
                    Finding(
                        f"{len(others)} of {len(index)} audio files of session {session} have no "
                        "line of labels and are not used.",
                        where=str(index.find(others[0])),
                        fix=f"Complete the files in {self._label_folder(session)}.",
                        code="corpus-incomplete",
                    )
                )
        return findings

    def _label_findings(self, turns: Mapping[int, Sequence[Turn]]) -> list[Finding]:
        findings: list[Finding] = []
        every = [turn for labelled in turns.values() for turn in labelled]
        unknown = [turn for turn in every if turn.emotion not in KNOWN_EMOTIONS]
        if unknown:
            spelt = ", ".join(sorted({turn.emotion for turn in unknown})[:5])
            findings.append(
                Finding(
                    f"{len(unknown)} of {len(every)} lines of labels have an emotion that IEMOCAP "
                    f"does not have: {spelt}. These utterances would be missing.",
                    where=unknown[0].source,
                    fix=f"The emotions are {', '.join(sorted(KNOWN_EMOTIONS))}.",
                    code="label-unknown",
                    certain=True,
                )
            )
        for session, labelled in turns.items():
            usable = [t for t in labelled if MERGED.get(t.emotion, t.emotion) in CLASSES]
            voices = {turn.name.rsplit("_", 1)[-1][:1] for turn in usable}
            if len(voices) == 1:
                findings.append(
                    Finding(
                        f"Session {session} has utterances of one speaker only, "
                        f"{voices.pop()!r}: each session has two.",
                        where=str(self._label_folder(session)),
                        fix="Complete the label files.",
                        code="corpus-incomplete",
                    )
                )
            files = self._label_files(session)
            empty = sorted(set(files) - {turn.file for turn in labelled})
            if not usable or empty:
                whole = not usable
                findings.append(
                    Finding(
                        f"Session {session} has no utterance of the four emotions in "
                        f"{len(files)} label files."
                        if whole
                        else f"{len(empty)} of {len(files)} label files of session {session} have "
                        "no labels.",
                        where=str(empty[0] if empty else self._label_folder(session)),
                        fix="Complete the label files: lines of labels begin with `[`.",
                        code="corpus-incomplete",
                        certain=whole,
                    )
                )
        return findings

    def _label_files(self, session: int) -> list[Path]:
        """The label files of a session in SUPERB's order; other dialogues follow by name."""
        folder = self._label_folder(session)
        files = [folder / name for name in list_files(folder) if name.endswith(".txt")]
        rank = {dialogue: place for place, dialogue in enumerate(DIALOGUES)}
        return sorted(files, key=lambda file: (rank.get(file.stem, len(rank)), file.stem))


def draw_dev(utterances: int, valid_ratio: float) -> tuple[list[int], list[int]]:
    """Split the utterances of the training sessions into train and dev like SUPERB.

    SUPERB uses `torch.random_split` after `torch.manual_seed(0)`. A separate generator with that
    seed gives the same permutation without changing the global random state. For dialogues in the
    order of SUPERB's lists, the split equals SUPERB's.

    Args:
        utterances: number of utterances.
        valid_ratio: fraction of dev.

    Returns:
        Indices of train, and of dev.
    """
    order = torch.randperm(utterances, generator=torch.Generator().manual_seed(SPLIT_SEED))
    boundary = int((1 - valid_ratio) * utterances)
    return order[:boundary].tolist(), order[boundary:].tolist()
