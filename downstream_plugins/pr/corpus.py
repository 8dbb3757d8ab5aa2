"""LibriSpeech with a pronunciation lexicon, for phoneme recognition.

Layout: LibriSpeech's folders (`<libri_root>/<set>/<speaker>/<chapter>/`), and lexicon files in the
format of OpenSLR 11, with a line `WORD  P1 P2 ...` for each word.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from downstream_plugins.librispeech import (
    Transcript,
    layout_problems,
    published,
    read_set,
    speaker_of,
)
from s3prl_mtl.data import Corpus, Official, Utterance, absolute, read_lines
from s3prl_mtl.errors import UserError

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N"),
    *("NG", "P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH"),
)
STRESSES = ("0", "1", "2")  # none, primary, secondary
STRESSED_VOWELS = tuple(vowel + stress for vowel in VOWELS for stress in STRESSES)
VOCABULARY = (*SPECIAL_TOKENS, "SIL", "SPN", *sorted(STRESSED_VOWELS + CONSONANTS))
"""74 tokens: the ARPABET phones of CMUdict with stress, as SUPERB numbers them."""

_LISTED_WORDS = 10


class LibriSpeechPhones(Corpus):
    """LibriSpeech: read English books; each utterance with the phones of its words.

    SUPERB trains on train-clean-100 and evaluates on dev-clean and test-clean. Labels: `phones`,
    each word's first pronunciation in the lexicon files, in their order.

    Args:
        libri_root: the folder that holds the sets.
        lexicon: lexicon files; the first file with a word is used.
        train: sets of the split `train`.
        dev: sets of the split `dev`.
        test: sets of the split `test`.
    """

    title: ClassVar[str] = "LibriSpeech"
    task: ClassVar[str] = "pr"
    splits: tuple[str, ...] = ("train", "dev", "test")

    def __init__(
        self,
        *,
        libri_root: str | os.PathLike[str],
        lexicon: Sequence[str | os.PathLike[str]],
        train: Sequence[str] = ("train-clean-100",),
        dev: Sequence[str] = ("dev-clean",),
        test: Sequence[str] = ("test-clean",),
    ) -> None:
        self.root = absolute(libri_root)
        files = [lexicon] if isinstance(lexicon, str | os.PathLike) else lexicon
        self.lexicon = [absolute(file) for file in files]
        self.sets = {"train": tuple(train), "dev": tuple(dev), "test": tuple(test)}
        super().__init__({"libri_root": self.root, "lexicon": self.lexicon, **self.sets})

    def problems(self) -> list[str]:
        problems = layout_problems(self, self.root, self.sets)
        for file in self.lexicon:
            problems += self.missing_file(file, "a lexicon (`WORD  P1 P2 ...` a line)", "lexicon")
        if not self.lexicon:
            problems.append(
                f"{self.task}: no lexicon is set; list one or more in `datarc.lexicon`."
            )
        return problems

    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split, with their phones.

        Raises:
            UserError: as :meth:`Corpus.utterances`; also words without a pronunciation.
        """
        self.check_split(split)
        pronunciations = read_lexicon(self.lexicon)
        transcripts = [t for name in self.sets[split] for t in read_set(self.root / name)]
        self._check_words(transcripts, pronunciations)
        return [
            Utterance(t.id, t.path, {"phones": pronounce(t.text, pronunciations)})
            for t in transcripts
        ]

    def label_space(self) -> dict[str, Any]:
        return {"vocabulary": list(VOCABULARY)}

    def official(self, split: str) -> Official | None:
        return published(self.sets[split])

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        return speaker_of(utterance_id)

    def shared_speakers(self, first: str, second: str) -> Literal["allowed", "warning", "error"]:
        return "warning" if "train" in (first, second) else "allowed"

    def _check_words(
        self, transcripts: Sequence[Transcript], pronunciations: dict[str, list[str]]
    ) -> None:
        missing: dict[str, str] = {}
        for transcript in transcripts:
            for word in transcript.text.split():
                if word not in pronunciations:
                    missing.setdefault(word, transcript.source)
        if not missing:
            return
        listed = [f"{w} ({source})" for w, source in list(missing.items())[:_LISTED_WORDS]]
        more = len(missing) - len(listed)
        files = ", ".join(map(str, self.lexicon))
        raise UserError(
            f"pr: {len(missing)} words of the transcripts have no pronunciation: "
            + "; ".join(listed)
            + (f"; and {more} more." if more else "."),
            where=f"the lexicon files {files}",
            fix="Add a line `WORD  P1 P2 ...` for each, or another lexicon file (such as the "
            "output of a grapheme-to-phoneme model) to pr's `datarc.lexicon`.",
            code="corpus-incomplete",
        )


def pronounce(text: str, pronunciations: dict[str, list[str]]) -> list[str]:
    """The phones of all words of a text."""
    return [phone for word in text.split() for phone in pronunciations[word]]


def read_lexicon(files: Sequence[Path]) -> dict[str, list[str]]:
    """Each word's first pronunciation in the files, in their order.

    Raises:
        UserError: a file cannot be read, or a line has no phones or an unknown one.
    """
    known = set(VOCABULARY)
    pronunciations: dict[str, list[str]] = {}
    for file in files:
        for number, line in read_lines(file):
            word, *phones = line.split()
            unknown = [phone for phone in phones if phone not in known]
            if unknown or not phones:
                raise UserError(
                    f"The pronunciation of {word} has "
                    + (f"an unknown phone {unknown[0]!r}." if unknown else "no phones."),
                    where=f"{file}, line {number}",
                    fix="Use ARPABET with stress, such as `HELLO  HH AH0 L OW1`.",
                    code="corpus-malformed",
                )
            pronunciations.setdefault(word.upper(), phones)
    return pronunciations
