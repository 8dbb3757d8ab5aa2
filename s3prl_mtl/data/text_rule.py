"""Normalisation of transcripts by a stated rule."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields

from s3prl_mtl.errors import UserError, nearest

APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\u00b4": "'", "`": "'"})

CHOICES = {
    "case": ("upper", "lower", "keep"),
    "punctuation": ("strip", "keep"),
    "accents": ("keep", "strip"),
    "digits": ("keep", "strip"),
}


@dataclass(frozen=True)
class TextRule:
    """What becomes of a transcript.

    Args:
        case: `upper`, `lower` or `keep`.
        punctuation: `strip` replaces punctuation and symbols by a blank, but an apostrophe within a
            word; `keep`.
        accents: `strip` removes the marks of letters; `keep` composes them (NFC).
        digits: `strip` or `keep`. Numbers are not spelled out: do so in the table.
    """

    case: str = "upper"
    punctuation: str = "strip"
    accents: str = "keep"
    digits: str = "keep"

    @classmethod
    def from_settings(cls, settings: Mapping[str, str], where: str) -> TextRule:
        """The rule of settings.

        Raises:
            UserError: an unknown key or choice.
        """
        for key, value in settings.items():
            if key not in CHOICES:
                raise UserError(
                    f"Unknown key {key!r}.",
                    where=f"{where}.{key}",
                    fix=nearest(key, [entry.name for entry in fields(cls)]),
                    code="unknown-key",
                )
            if value not in CHOICES[key]:
                raise UserError(
                    f"{value!r} is not a choice.",
                    where=f"{where}.{key}",
                    fix=f"Choose {' or '.join(CHOICES[key])}.",
                    code="invalid-value",
                )
        return cls(**settings)

    def __call__(self, text: str) -> str:
        """The normalised text, words separated by single blanks."""
        text = unicodedata.normalize("NFC", text).translate(APOSTROPHES)
        if self.accents == "strip":
            letters = unicodedata.normalize("NFD", text)
            text = "".join(c for c in letters if unicodedata.category(c) != "Mn")
        if self.case != "keep":
            text = text.upper() if self.case == "upper" else text.lower()
        if self.digits == "strip":
            text = "".join(" " if c.isdigit() else c for c in text)
        if self.punctuation == "strip":
            text = "".join(
                " " if unicodedata.category(c)[0] in "PS" and not _is_within(text, i) else c
                for i, c in enumerate(text)
            )
        return " ".join(text.split())


def _is_within(text: str, place: int) -> bool:
    """Whether there is an apostrophe between two letters."""
    return (
        text[place] == "'"
        and 0 < place < len(text) - 1
        and text[place - 1].isalpha()
        and text[place + 1].isalpha()
    )
