"""Locate the installed s3prl and its experts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from s3prl_mtl.errors import UserError, nearest

EXPERT_FILE = "expert.py"


def installed_s3prl() -> Path | None:
    """The folder of the installed s3prl package, or None."""
    found = importlib.util.find_spec("s3prl")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]).resolve()


def installed_root() -> Path | None:
    """The `downstream` folder of the installed s3prl, or None."""
    package = installed_s3prl()
    return None if package is None else package / "downstream"


def installed_experts() -> dict[str, Path]:
    """The folders of the installed s3prl's experts, by name."""
    root = installed_root()
    if root is None or not root.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{EXPERT_FILE}"))}


def expert_path(folder: str) -> Path:
    """The folder of an expert.

    Args:
        folder: a name in the installed s3prl, or a path (with a `/`).

    Raises:
        UserError: there is no such expert, or s3prl is not installed.
    """
    if "/" in folder:
        path = Path(folder)
        if not (path / EXPERT_FILE).is_file():
            raise UserError(
                f"{path} has no {EXPERT_FILE}.",
                where=f"-d s3prl:{folder}",
                fix=f"Give the folder of an expert, which contains {EXPERT_FILE}.",
                code="file-missing",
            )
        return path
    experts = installed_experts()
    if folder in experts:
        return experts[folder]
    if not experts:
        raise UserError(
            "s3prl is not installed.",
            where=f"-d s3prl:{folder}",
            fix="Install it with `pip install 's3prl-mtl[s3prl]'`.",
            code="missing-package",
        )
    raise UserError(
        f"The installed s3prl has no expert {folder!r}.",
        where=f"-d s3prl:{folder}",
        fix=nearest(folder, list(experts)) + " Give the path of a folder elsewhere.",
        code="unknown-name",
    )
