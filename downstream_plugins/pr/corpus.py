"""LibriSpeech with a pronunciation lexicon, for phoneme recognition.

Layout: LibriSpeech's folders (`<libri_root>/<set>/<speaker>/<chapter>/`), and lexicon files with a
line `WORD  P1 P2 ...` for each word, in one of these forms:

- LibriSpeech's own lexicon (OpenSLR 11), and the output of a grapheme-to-phoneme model;
- CMUdict: comments begin with `;;;` or `##` (or ` #` after the phones), further pronunciations of a
  word are `WORD(1)` or `WORD(2)`, the encoding may be Latin-1;
- Kaldi's `lexiconp.txt` and `lexiconp_silprob.txt`: numbers between the word and its phones;
- s3prl's and fairseq's files of grapheme-to-phoneme output: `WORD<TAB>P1 P2 ...`, with or without a
  number.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from downstream_plugins.librispeech import (
    Transcript,
    layout_problems,
    published,
    read_sets,
    set_findings,
    speaker_of,
)
from s3prl_mtl.data import Corpus, Finding, Official, Utterance, absolute, read_lines
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
_NUMBER = re.compile(r"\d*\.?\d+(e-?\d+)?", re.IGNORECASE)
_COMMENT = re.compile(r"\s*(;;;|##|#\s)")
_VARIANT = re.compile(r"(?<=.)\(\d+\)$")


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
    cacheable: ClassVar[bool] = True
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
        transcripts = read_sets(self.root, self.sets[split])
        self._check_words(transcripts, pronunciations)
        return [
            Utterance(t.id, t.path, {"phones": pronounce(t.text, pronunciations)}, source=t.source)
            for t in transcripts
        ]

    def findings(self, split: str) -> list[Finding]:
        return set_findings(self, self.root, self.sets[split])

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
        if missing:
            raise missing_words(missing, self.lexicon)


def missing_words(missing: Mapping[str, str], lexicon: Sequence[Path]) -> UserError:
    """The error of words without a pronunciation.

    Args:
        missing: where each word is first needed.
        lexicon: the files without it.
    """
    listed = [f"{word} ({source})" for word, source in list(missing.items())[:_LISTED_WORDS]]
    more = len(missing) - len(listed)
    files = ", ".join(map(str, lexicon)) or "none are set"
    return UserError(
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
        UserError: a file cannot be read, or lines have no phones or unknown ones; all such lines of
            a file are counted in one error.
    """
    pronunciations: dict[str, list[str]] = {}
    for file in files:
        entries = [parse_entry(line) for _, line in _lexicon_lines(file)]
        for entry in _checked(file, entries):
            pronunciations.setdefault(*entry)
    return pronunciations


def parse_entry(line: str) -> tuple[str, list[str]]:
    """The word, in upper case, and the phones of a line of a lexicon.

    For example, `HI(2)  0.5 HH AY1 # comment` gives `("HI", ["HH", "AY1"])`.
    """
    word, *phones = line.split()
    if "#" in phones:
        phones = phones[: phones.index("#")]
    first = next((i for i, phone in enumerate(phones) if not _NUMBER.fullmatch(phone)), len(phones))
    return _VARIANT.sub("", word).upper(), phones[first:]


def _lexicon_lines(file: Path) -> list[tuple[int, str]]:
    lines = read_lines(file, other_encoding="latin-1")
    return [(number, line) for number, line in lines if not _COMMENT.match(line)]


def _checked(
    file: Path, entries: Sequence[tuple[str, list[str]]]
) -> Sequence[tuple[str, list[str]]]:
    """The entries of a file, if all of them have known phones."""
    known = set(VOCABULARY)
    wrong = [
        place
        for place, (_, phones) in enumerate(entries)
        if not phones or not known.issuperset(phones)
    ]
    if not wrong:
        return entries
    word, phones = entries[wrong[0]]
    number = _lexicon_lines(file)[wrong[0]][0]
    unknown = Counter(p for place in wrong for p in entries[place][1] if p not in known)
    listed = ", ".join(repr(phone) for phone, _ in unknown.most_common(_LISTED_WORDS))
    what = f"an unknown phone: {listed}" if unknown else "no phones"
    fix = "Use ARPABET with stress, such as `HELLO  HH AH0 L OW1`."
    if set(unknown) & set(VOWELS):
        fix = f"Its vowels have no stress; take a lexicon with stress. {fix}"
    elif unknown and all(phone.upper() in known for phone in unknown):
        fix = f"Write phones in upper case. {fix}"
    raise UserError(
        f"{len(wrong)} of {len(entries)} pronunciations have {what}; the first is that of {word}.",
        where=f"{file}, line {number}: {word} {' '.join(phones)}".rstrip(),
        fix=fix,
        code="corpus-malformed",
    )
