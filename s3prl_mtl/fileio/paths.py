"""Paths that the user gives: `~`, outputs that must not exist, names that are taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError


def expand_home(value: Any) -> Any:
    """A path, or each of a list, with `~` expanded; anything else unchanged."""
    if isinstance(value, list):
        return [expand_home(entry) for entry in value]
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(value) if isinstance(value, str) else value


def require_absent(
    path: Path, where: str, fix: str = "Choose another name, or remove it first."
) -> None:
    """Check that an output does not exist.

    Args:
        path: of the output.
        where, fix: of the error.

    Raises:
        UserError: it exists, also as a broken link.
    """
    if os.path.lexists(path):
        raise UserError(
            f"{path} exists and is not overwritten.", where=where, fix=fix, code="file-exists"
        )


def move_aside(path: Path, place: Path) -> Path:
    """Rename a file or folder, with a number after the name if that is taken.

    Args:
        path: of the file or folder.
        place: its new path; the folder around it exists.

    Returns:
        the path that it has now.
    """
    chosen, number = place, 1
    while os.path.lexists(chosen):
        number += 1
        chosen = place.with_name(f"{place.name}-{number}")
    path.rename(chosen)
    return chosen
