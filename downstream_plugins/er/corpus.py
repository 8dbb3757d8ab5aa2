"""IEMOCAP for emotion recognition.

Layout::

    Session<1-5>/dialog/EmoEvaluation/<dialogue>.txt          lines of interest begin with `[`
    Session<1-5>/sentences/wav/<dialogue>/<utterance>.wav
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import torch

from downstream_plugins.er.dialogue_order import DIALOGUES
from s3prl_mtl.data import Corpus, Official, Utterance, absolute, list_audio, read_lines
from s3prl_mtl.errors import UserError

CLASSES = ("neu", "hap", "ang", "sad")
MERGED = {"exc": "hap"}
SESSIONS = (1, 2, 3, 4, 5)
SESSION_UTTERANCES = {1: 1085, 2: 1023, 3: 1151, 4: 1031, 5: 1241}
"""Utterances of the four classes in each session of IEMOCAP."""
SPLIT_SEED = 0


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
                fix=f"Take one of {', '.join(folds)}.",
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
        others = [session for session in SESSIONS if session != self.test_session]
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

    def _session(self, session: int) -> list[Utterance]:
        folder = self._audio_folder(session)
        audio = {PurePosixPath(name).stem: folder / name for name in list_audio(folder)}
        found: list[Utterance] = []
        for file in self._label_files(session):
            for number, line in read_lines(file):
                if not line.startswith("["):
                    continue
                fields = [field for field in line.split("\t") if field.strip()]
                if len(fields) < 3:
                    raise UserError(
                        "er: a line of labels has too few fields.",
                        where=f"{file}, line {number}",
                        fix="It is `[start - end]<TAB>utterance<TAB>emotion<TAB>[v, a, d]`.",
                        code="corpus-malformed",
                    )
                name, emotion = fields[1].strip(), fields[2].strip()
                label = MERGED.get(emotion, emotion)
                if label in CLASSES:
                    path = audio.get(name, folder / file.stem / f"{name}.wav")
                    found.append(Utterance(name, path, {"class": label}))
        return found

    def _label_files(self, session: int) -> list[Path]:
        """The label files of a session in SUPERB's order; other dialogues follow by name."""
        folder = self._label_folder(session)
        try:
            names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
        except OSError as error:
            raise UserError(
                f"er: {folder} cannot be listed: {error.strerror or error}.",
                where="er's `datarc.root`",
                fix="Name the folder with Session1 to Session5.",
                code="file-unreadable",
            ) from error
        # Hidden files were created by macOS and contain no labels.
        files = [folder / n for n in names if n.endswith(".txt") and not n.startswith(".")]
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
