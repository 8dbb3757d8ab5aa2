"""LibriSpeech for speech recognition.

Layout: `<libri_root>/<set>/<speaker>/<chapter>/`, with a flac file for each utterance and a
`*.trans.txt` for each chapter, as the archives of OpenSLR 12 unpack.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from downstream_plugins.asr.pseudo_labels import PseudoLabels, read_pseudo_labels
from downstream_plugins.librispeech import (
    layout_problems,
    published,
    read_sets,
    set_findings,
    speaker_of,
)
from s3prl_mtl.data import Corpus, Finding, Official, Utterance, absolute
from s3prl_mtl.errors import UserError

SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
WORD_BOUNDARY = "|"
EVALUATION_SETS = ("dev-clean", "dev-other", "test-clean", "test-other")


class LibriSpeech(Corpus):
    """LibriSpeech: read English books, 1000 hours, each utterance with its words.

    SUPERB trains on train-clean-100 and evaluates on dev-clean and test-clean; dev-other and
    test-other are splits too where they are unpacked. Labels: `text`, upper-case words.

    Args:
        libri_root: the folder that holds the sets.
        train: sets that make up the split `train`.
        dev: sets for validation, each a split of its own name.
        test: sets for testing, each a split of its own name.
        pseudo_labels: a file of predicted transcripts, added to `train`
            (:mod:`downstream_plugins.asr.pseudo_labels`).
        pseudo_confidence: the smallest confidence of a predicted transcript, from 0 to 1.
    """

    title: ClassVar[str] = "LibriSpeech"
    task: ClassVar[str] = "asr"
    cacheable: ClassVar[bool] = True

    def __init__(
        self,
        *,
        libri_root: str | os.PathLike[str],
        train: Sequence[str] = ("train-clean-100",),
        dev: Sequence[str] = ("dev-clean",),
        test: Sequence[str] = ("test-clean",),
        pseudo_labels: str | os.PathLike[str] | None = None,
        pseudo_confidence: float = 0.9,
    ) -> None:
        self.root = absolute(libri_root)
        self.sets = {"train": tuple(train), "dev": tuple(dev), "test": tuple(test)}
        self.pseudo_labels = None if pseudo_labels is None else absolute(pseudo_labels)
        self.pseudo_confidence = pseudo_confidence
        added = {}
        if self.pseudo_labels is not None:
            check_confidence(pseudo_confidence)
            added = {"pseudo_labels": self.pseudo_labels, "pseudo_confidence": pseudo_confidence}
        super().__init__({"libri_root": self.root, **self.sets, **added})

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, the sets of `dev` and `test`, and other evaluation sets of SUPERB on disk."""
        asked = ("train", *self.sets["dev"], *self.sets["test"])
        unpacked = (name for name in EVALUATION_SETS if (self.root / name).is_dir())
        return tuple(dict.fromkeys((*asked, *unpacked)))

    def problems(self) -> list[str]:
        problems = layout_problems(self, self.root, self.sets)
        if self.pseudo_labels is not None:
            expected = "the output of `s3prl-mtl predict`"
            problems += self.missing_file(self.pseudo_labels, expected, "pseudo_labels")
        return problems

    def split_sets(self, split: str) -> tuple[str, ...]:
        """SUPERB's rule: `train` consists of the configured sets; other splits are single sets."""
        return self.sets["train"] if split == "train" else (split,)

    def utterances(self, split: str) -> list[Utterance]:
        self.check_split(split)
        transcribed = self._transcribed(split)
        return transcribed + (self._pseudo(transcribed).utterances if split == "train" else [])

    def _transcribed(self, split: str) -> list[Utterance]:
        return [
            Utterance(t.id, t.path, {"text": t.text}, source=t.source)
            for t in read_sets(self.root, self.split_sets(split))
        ]

    def _pseudo(self, transcribed: Sequence[Utterance]) -> PseudoLabels:
        if self.pseudo_labels is None:
            return PseudoLabels([])
        known = (utterance.path for utterance in transcribed)
        return read_pseudo_labels(self.pseudo_labels, self.pseudo_confidence, known)

    def notes(self) -> list[str]:
        if self.pseudo_labels is None:
            return []
        read = self._pseudo(self._transcribed("train"))
        return [read.summary(self.pseudo_labels, self.pseudo_confidence)]

    def findings(self, split: str) -> list[Finding]:
        return set_findings(self, self.root, self.split_sets(split))

    def label_space(self) -> dict[str, Any]:
        # Predicted transcripts do not change the head, unless there are no others.
        utterances = self._transcribed("train") or self.utterances("train")
        texts = (utterance.labels["text"] for utterance in utterances)
        return {"symbols": build_symbols(texts)}

    def official(self, split: str) -> Official | None:
        if split == "train" and self.pseudo_labels is not None:
            return None
        return published(self.split_sets(split))

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        return speaker_of(utterance_id)

    def shared_speakers(self, first: str, second: str) -> Literal["allowed", "warning", "error"]:
        return "warning" if "train" in (first, second) else "allowed"


def check_confidence(value: object) -> None:
    """Raise `UserError` unless the value is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(
            f"{value!r} is not a confidence.",
            where="asr.downstream_expert.datarc.pseudo_confidence",
            fix="Set a number from 0 (take all) to 1.",
            code="invalid-value",
        )


def spell(text: str) -> list[str]:
    """The symbols of a text: characters, with `|` between words and at the end.

    For example, `"HI YOU"` gives `["H", "I", "|", "Y", "O", "U", "|"]`.
    """
    return [*text.upper().replace(" ", WORD_BOUNDARY), WORD_BOUNDARY]


def build_symbols(texts: Iterable[str], multiple: int = 8) -> list[str]:
    """The dictionary that fairseq builds from transcripts.

    Special symbols, then symbols by decreasing count (ties by code point), then
    `madeupword0000`, ... up to a multiple of `multiple`.

    Args:
        texts: upper-case transcripts.
        multiple: the number of symbols is padded to a multiple of this.
    """
    counts = Counter(symbol for text in texts for symbol in spell(text))
    symbols = [*SPECIAL_SYMBOLS, *sorted(counts, key=lambda symbol: (-counts[symbol], symbol))]
    fillers = -len(symbols) % multiple
    return symbols + [f"madeupword{number:04d}" for number in range(fillers)]
