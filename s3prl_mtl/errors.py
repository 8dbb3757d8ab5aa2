"""The one exception that stands for a mistake of the user, not of the program."""

from __future__ import annotations

import difflib
from typing import Any

__all__ = ["SharedMistake", "UserError", "nearest"]


class UserError(Exception):
    """Something that the user can put right: a path, a name, a setting, a file.

    The command line prints it as one paragraph, without a traceback, and exits with code 2.

    Args:
        what: what is wrong, a full sentence.
        where: the file, key or flag that holds it.
        fix: what would be right.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        parts = [what.rstrip()]
        if where:
            parts.append(f"Where: {where}.")
        if fix:
            parts.append(f"Fix: {fix.rstrip()}")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader worker hands it over pickled; its arguments are not the text that it shows.
        return _rebuild, (type(self), str(self), self.__dict__)


class SharedMistake(UserError):
    """A mistake that every process of the run has been told of: one of them shows it."""


def _rebuild(kind: type[UserError], text: str, attributes: dict[str, Any]) -> UserError:
    error = kind.__new__(kind, text)
    error.args = (text,)
    error.__dict__.update(attributes)
    return error


def nearest(name: str, known: list[str], limit: int = 3) -> str:
    """A hint that lists the known names nearest to a misspelt one, or all of a short list."""
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, known, n=limit, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(word) for word in close) + "?"
    return "known names: " + ", ".join(sorted(known)) + "."
