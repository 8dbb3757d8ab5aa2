"""Config files of this package: SUPERB's settings of each task, and those of the demo."""

from __future__ import annotations

import os
from pathlib import Path

from s3prl_mtl.errors import UserError, nearest

__all__ = ["find_settings", "packaged_settings"]

FOLDER = Path(__file__).parent


def packaged_settings() -> dict[str, Path]:
    """The packaged config files by the name that `-c` takes, such as `superb/ks`."""
    files = sorted(FOLDER.rglob("*.yaml"))
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in files}


def find_settings(name: str | Path) -> Path:
    """The file of `-c`: a path or, where no such file exists, the name of packaged settings.

    Raises:
        UserError: neither exists.
    """
    path = Path(os.path.expanduser(name))
    packaged = packaged_settings()
    if path.is_file() or (path.exists() and str(name) not in packaged):
        return path
    if str(name) not in packaged:
        hint = nearest(str(name), list(packaged))
        raise UserError(
            f"The file {name} does not exist, nor do packaged settings of this name.",
            where="-c",
            fix=f"{hint[:1].upper()}{hint[1:]}",
            code="file-missing",
        )
    return packaged[str(name)]
