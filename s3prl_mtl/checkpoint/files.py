"""Read and write the checkpoint files of a run."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from s3prl_mtl.checkpoint.branch import from_branch, is_of_branch
from s3prl_mtl.checkpoint.contents import FORMAT, RunCheckpoint
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import atomic_path, remove_partials, write_reason
from s3prl_mtl.fileio.paths import move_aside
from s3prl_mtl.fileio.safe_torch import DamagedFile, safe_load
from s3prl_mtl.upstreams.strict_loading import non_finite_weight

logger = logging.getLogger(__name__)

STATES_PATTERN = re.compile(r"states-(\d+)\.ckpt")


def save(checkpoint: RunCheckpoint, path: Path) -> None:
    """Write a checkpoint atomically; on an error the old file and older checkpoints are intact.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path, sync=True) as partial, partial.open("wb") as file:
            torch.save(checkpoint.to_dict(), file)
    except (OSError, RuntimeError) as error:
        reason = write_reason(error)
        if reason is None:
            raise
        raise UserError(
            f"The checkpoint could not be saved: {reason}. Earlier checkpoints are intact.",
            where=str(path),
            fix="Free space on that disk or make the folder writable, then start again with -a.",
            code="file-unwritable",
        ) from error


def load(path: Path) -> RunCheckpoint:
    """Read a checkpoint without executing anything in it.

    Checkpoints of s3prl's multi-task branch are converted, as far as they have the parts.

    Raises:
        DamagedFile: the file is truncated, or bytes of it changed since it was written.
        UserError: the file is missing, cannot be read, names foreign classes, is not a
            checkpoint of a run, or has weights that are NaN.
    """
    path = Path(os.path.expanduser(path))
    return from_content(read_tensors(path), path)


def from_content(content: dict[str, Any], path: Path) -> RunCheckpoint:
    """The checkpoint in the dictionary of a file.

    Raises:
        UserError: as `load`.
    """
    if is_of_branch(content):
        return _checked(from_branch(content, path), path)
    if is_single_head(content):
        raise UserError(
            "The file is a run of s3prl that trained a single task.",
            where=str(path),
            fix=f"Start from its head with -i {path}, from its encoder with --init_upstream_ckpt.",
            code="checkpoint-format",
        )
    if content.get("Format") != FORMAT:
        raise UserError(
            "The file is not a checkpoint of a run of s3prl-mtl.",
            where=str(path),
            fix="-k takes fairseq checkpoints; -e and -a take runs and their states-*.ckpt.",
            code="checkpoint-format",
        )
    return _checked(RunCheckpoint.from_dict(content, str(path)), path)


def is_single_head(content: Mapping[str, Any]) -> bool:
    """Whether a file is of a run of s3prl that trained a single task."""
    return "Format" not in content and "Downstream" in content


def _checked(saved: RunCheckpoint, path: Path) -> RunCheckpoint:
    """A checkpoint with its file. Refuse weights, and states of their optimizer, that are NaN.

    Infinite parameters are refused where they are loaded: best scores may be infinite.
    """
    heads = {f"the head of {name}": task.head for name, task in saved.tasks.items()}
    parts = {"the encoder": saved.upstream, "the featurizer": saved.featurizer, **heads}
    if saved.training is not None:
        for name, state in saved.training.optimizer.state.items():
            parts[f"the optimizer, for {name}"] = state
    for what, weights in parts.items():
        for name, weight in weights.items():
            if isinstance(weight, torch.Tensor) and weight.isnan().any():
                raise non_finite_weight(name, weight, what, str(path))
    return replace(saved, file=path)


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a dictionary of tensors and plain values that any program wrote.

    Classes that such files name, as `argparse.Namespace`, become stand-ins.

    Raises:
        DamagedFile, UserError: as `load`.
    """
    content = safe_load(path, kind="checkpoint", verify=True)
    if not isinstance(content, dict):
        raise UserError(
            f"The file is not a dictionary of weights but a {type(content).__name__}.",
            where=str(path),
            code="checkpoint-format",
        )
    return content


def states_files(folder: Path) -> list[Path]:
    """The `states-<step>.ckpt` of a run, the newest last."""
    found = [
        (int(match.group(1)), path)
        for path in folder.glob("states-*.ckpt")
        if (match := STATES_PATTERN.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def keep_newest(folder: Path, count: int) -> None:
    """Delete all but the newest `states-*.ckpt`. Call it when the newest one is on the disk.

    Partial files of killed processes are deleted too.
    """
    for path in states_files(folder)[:-count]:
        path.unlink(missing_ok=True)
    remove_partials(folder, "states-*.ckpt")


def locate(run: Path, flag: str = "-e") -> Path:
    """The checkpoint at a path: the file itself, or the newest one of the folder of a run.

    Args:
        run: the path.
        flag: the flag that gave it, for errors.

    Raises:
        UserError: there is neither.
    """
    run = Path(os.path.expanduser(run))
    if run.is_file():
        return run
    files = states_files(run)
    if not files:
        raise UserError(
            f"{run} contains no states-*.ckpt." if run.is_dir() else f"{run} does not exist.",
            where=f"{flag} {run}",
            fix="Give the folder of a run, or one of its .ckpt files.",
            code="checkpoint-missing",
        )
    return files[-1]


def load_newest(
    run: Path, flag: str = "-e", *, set_aside: bool = True
) -> tuple[RunCheckpoint, Path]:
    """Read the newest undamaged checkpoint of a run; log a warning for each damaged newer one.

    A damaged file is renamed to `states-<step>.ckpt.damaged`, so that `keep_newest` does not count
    it. No file is renamed unless an older one is undamaged.

    Args:
        run: the folder of a run; or a file, which is then read whatever else the folder has.
        flag: the flag that gave the path, for errors.
        set_aside: rename damaged files. False for commands that only read; of several processes
            that read the same run only one may rename.

    Returns:
        the checkpoint and its file.

    Raises:
        DamagedFile: the given file, or every file of the folder, is damaged.
        UserError: as `locate`, or as `load` for anything but damage: a file that cannot be read
            now, or that another program wrote, is not skipped.
    """
    run = Path(os.path.expanduser(run))
    newest = locate(run, flag)
    if newest == run:
        return load(run), run
    damaged: list[tuple[Path, DamagedFile]] = []
    for path in reversed(states_files(run)):
        try:
            checkpoint = load(path)
        except DamagedFile as error:
            damaged.append((path, error))
            continue
        for other, damage in damaged:
            kept_as = _set_aside(other).name if set_aside else other.name
            logger.warning(
                "Skipping %s (kept as %s): %s Resuming from %s instead.",
                other,
                kept_as,
                damage.what,
                path.name,
            )
        return checkpoint, path
    reasons = " ".join(f"{path.name}: {damage.what}" for path, damage in damaged)
    raise DamagedFile(
        f"All checkpoints in {run} are damaged. {reasons}",
        where=f"{flag} {run}",
        fix="Give another run, or restore these files from copies.",
        code="torch-file-refused",
    )


def _set_aside(path: Path) -> Path:
    """Rename a damaged file to an unused name."""
    try:
        return move_aside(path, path.with_name(f"{path.name}.damaged"))
    except OSError as error:
        # Under its name it would be kept as the newest, and undamaged ones deleted.
        raise UserError(
            f"{path.name} is damaged and could not be renamed: {error.strerror}.",
            where=str(path),
            fix="Make the folder writable, or move the file away.",
            code="file-unwritable",
        ) from error
