"""The best checkpoints of a run, `<task>/<split>-best.ckpt`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError

SUFFIX = "-best.ckpt"


def best_files(run: Path) -> dict[str, list[Path]]:
    """The best checkpoints in the folder of a run, by task."""
    found: dict[str, list[Path]] = {}
    for path in sorted(run.glob(f"*/*{SUFFIX}")):
        found.setdefault(path.parent.name, []).append(path)
    return found


def best_of(task: str, files: Sequence[Path], config: Mapping[str, Any]) -> Path:
    """The best checkpoint of a task: of its first dev split, or the only one.

    Args:
        task: name in the run.
        files: at least one, from `best_files`.
        config: of the run.

    Raises:
        UserError: there are several, and none is of the first dev split.
    """
    block = config.get(task)
    splits = (block.get("dev_splits") if isinstance(block, Mapping) else None) or ()
    first = [path for path in files if splits and path.name == f"{splits[0]}{SUFFIX}"]
    if len(files) > 1 and not first:
        raise UserError(
            f"The task {task} has several best checkpoints: "
            f"{', '.join(path.name for path in files)}.",
            where=str(files[0].parent),
            fix=f"Name one by itself, such as {files[0]}.",
            code="ambiguous-name",
        )
    return (first or list(files))[0]


def name_in_run(path: Path, folder: Path) -> str:
    """A checkpoint's path within the folder of a run; the whole path outside of it."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
