"""Where experts of s3prl lie."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from s3prl_mtl.errors import UserError, nearest


def installed_root() -> Path | None:
    """The `downstream` folder of the installed s3prl, or None without s3prl."""
    found = importlib.util.find_spec("s3prl")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]).resolve() / "downstream"


def installed_experts() -> dict[str, Path]:
    """The experts of the installed s3prl by the names of their folders."""
    root = installed_root()
    if root is None or not root.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(root.glob("*/expert.py"))}


def expert_path(folder: str) -> Path:
    """Where an expert lies.

    Args:
        folder: of the installed s3prl by its name, any other by its path.

    Raises:
        UserError: there is no expert, or no s3prl.
    """
    if "/" in folder:
        path = Path(folder)
        if not (path / "expert.py").is_file():
            raise UserError(
                f"{path} holds no expert.py.",
                where="-d s3prl:...",
                fix="Name the folder of an expert: the one with expert.py in it.",
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
        )
    raise UserError(
        f"The installed s3prl has no expert {folder!r}.",
        where=f"-d s3prl:{folder}",
        fix=nearest(folder, list(experts)) + " A folder elsewhere is named by its path.",
    )
