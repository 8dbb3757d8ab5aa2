"""LibriSpeech for speech recognition.

Layout: `<libri_root>/<set>/<speaker>/<chapter>/`, with a flac file for each utterance and a
`*.trans.txt` for each chapter, as the archives of OpenSLR 12 unpack.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from downstream_plugins.asr.pseudo_labels import PseudoLabelFile
from downstream_plugins.librispeech import (
    layout_problems,
    published,
    read_sets,
    set_findings,
    speaker_of,
)
from s3prl_mtl.data import Corpus, Finding, Official, Utterance, absolute

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
        self.pseudo = PseudoLabelFile(pseudo_labels, pseudo_confidence)
        super().__init__({"libri_root": self.root, **self.sets, **self.pseudo.settings})

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, the sets of `dev` and `test`, and other evaluation sets of SUPERB on disk."""
        asked = ("train", *self.sets["dev"], *self.sets["test"])
        unpacked = (name for name in EVALUATION_SETS if (self.root / name).is_dir())
        return tuple(dict.fromkeys((*asked, *unpacked)))

    def problems(self) -> list[str]:
        return layout_problems(self, self.root, self.sets) + self.pseudo.problems(self)

    def split_sets(self, split: str) -> tuple[str, ...]:
        """SUPERB's rule: `train` consists of the configured sets; other splits are single sets."""
        return self.sets["train"] if split == "train" else (split,)

    def utterances(self, split: str) -> list[Utterance]:
        self.check_split(split)
        transcribed = self._transcribed(split)
        return transcribed + (self.pseudo.read(transcribed).utterances if split == "train" else [])

    def _transcribed(self, split: str) -> list[Utterance]:
        return [
            Utterance(t.id, t.path, {"text": t.text}, source=t.source)
            for t in read_sets(self.root, self.split_sets(split))
        ]

    def notes(self) -> list[str]:
        return self.pseudo.notes(lambda: self._transcribed("train"))

    def findings(self, split: str) -> list[Finding]:
        return set_findings(self, self.root, self.split_sets(split))

    def label_space(self) -> dict[str, Any]:
        # Predicted transcripts do not change the head, unless there are no others.
        utterances = self._transcribed("train") or self.utterances("train")
        texts = (utterance.labels["text"] for utterance in utterances)
        return {"symbols": build_symbols(texts)}

    def official(self, split: str) -> Official | None:
        if split == "train" and self.pseudo.path is not None:
            return None
        return published(self.split_sets(split))

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        return speaker_of(utterance_id)

    def shared_speakers(self, first: str, second: str) -> Literal["allowed", "warning", "error"]:
        return "warning" if "train" in (first, second) else "allowed"


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
