"""Normalisation of transcripts by a stated rule."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from s3prl_mtl.errors import UserError, nearest

APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\u00b4": "'", "`": "'"})

ACCENTS = dict.fromkeys([*range(0x0300, 0x0370), *range(0x1AB0, 0x1B00), *range(0x1DC0, 0x1E00)])
"""Unicode's blocks of combining diacritical marks. Those of other scripts than Latin, Greek and
Cyrillic are not among them: there they are vowels, or make another letter."""

JOINERS = "\u200c\u200d"
"""Invisible, but part of the spelling of Persian and of Indian languages."""

CHOICES = {
    "case": ("upper", "lower", "keep"),
    "punctuation": ("strip", "keep"),
    "accents": ("keep", "strip"),
    "digits": ("keep", "strip"),
}


@dataclass(frozen=True)
class TextRule:
    """Normalisation of transcripts.

    Args:
        case: `upper`, `lower` or `keep`.
        punctuation: `strip` replaces punctuation and symbols by a blank, but an apostrophe within a
            word, and removes invisible characters such as soft hyphens; `keep`.
        accents: `strip` removes the marks of Latin, Greek and Cyrillic letters; `keep` composes
            them (NFC).
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
        if not isinstance(settings, Mapping):
            raise UserError(
                f"{where} must be a mapping, not {settings!r}.",
                where=where,
                fix="For example {case: lower}.",
                code="wrong-type",
            )
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
            text = unicodedata.normalize("NFC", letters.translate(ACCENTS))
        if self.case != "keep":
            text = text.upper() if self.case == "upper" else text.lower()
        if self.digits == "strip":
            text = text.translate(DIGITS)
        if self.punctuation == "strip":
            text = LONE_APOSTROPHE.sub(" ", text.translate(PUNCTUATION))
        return " ".join(text.split())


class _Translation(dict[int, int | str | None]):
    """A table of `str.translate` that asks a function about each character once."""

    def __init__(self, rule: Callable[[str], int | str | None]) -> None:
        self._rule = rule

    def __missing__(self, code: int) -> int | str | None:
        return self.setdefault(code, self._rule(chr(code)))


def _without_punctuation(character: str) -> str | None:
    """A blank for punctuation and symbols, None for invisible characters."""
    category = unicodedata.category(character)
    if category == "Cf" and character not in JOINERS:
        return None
    return " " if category[0] in "PS" and character != "'" else character


PUNCTUATION = _Translation(_without_punctuation)
DIGITS = _Translation(lambda character: " " if character.isdigit() else character)
LONE_APOSTROPHE = re.compile(r"(?<![^\W\d_])'|'(?![^\W\d_])")
"""An apostrophe that is not between two letters."""
