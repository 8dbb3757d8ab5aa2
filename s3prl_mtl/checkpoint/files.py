"""Run checkpoints: what they hold, and how they reach the disk without endangering older ones."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.safe_torch import DamagedFile, load_inert
from s3prl_mtl.mtl_branch.checkpoint import from_branch, is_of_branch

logger = logging.getLogger(__name__)

STATES_PATTERN = re.compile(r"states-(\d+)\.ckpt")

Checkpoint = dict[str, Any]
"""Tensors and plain Python values only. Keys:

`Format` 2 · `Step` · `Config` · `Upstream` (state dict, fairseq's names under `model.` as s3prl has
them) · `UpstreamInfo` (what rebuilds the encoder without its original file) · `Featurizer` ·
`Tasks` {task: `Downstream` (the expert's state dict), `Labels`, `Decision`, `Stream`} · and in
`states-*.ckpt` also `Optimizer`, `Scheduler`, `Random`. What another program wrote and is given
these keys has `Origin`: `Config` is not complete then.
"""


REQUIRED = ("Step", "Tallies", "Config", "Upstream", "UpstreamInfo", "Featurizer", "Tasks")


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint so that at every moment the path holds the old file or the new one, whole.

    Raises:
        UserError: the disk is full or the folder read-only; whatever was there before is intact.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as cause:
        # torch reports a failed write of its zip file as RuntimeError.
        if isinstance(cause, RuntimeError) and not _is_write_error(cause):
            raise
        _discard(partial)
        raise UserError(
            f"The checkpoint could not be saved: {_write_reason(cause)}. "
            "Earlier checkpoints are intact.",
            where=str(path),
            fix="Free space on that disk or make the folder writable, then start again with -a.",
        ) from cause


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in it is ever executed.

    One of s3prl's multi-task branch comes with our keys, as far as it has what they stand for.

    Raises:
        DamagedFile: the file is truncated, or bytes of it changed since it was written.
        UserError: the file is missing, cannot be read, holds foreign classes, or is no checkpoint
            of ours.
    """
    checkpoint = read_tensors(path)
    if is_of_branch(checkpoint):
        return from_branch(checkpoint, path)
    if "Format" not in checkpoint and "Downstream" in checkpoint:
        raise UserError(
            "The file is a run of s3prl that trained a single task.",
            where=str(path),
            fix="Its head can be started from as -i DIR with DIR/<task>/<upstream>_<task>.ckpt, "
            "its encoder with --init_upstream_ckpt.",
        )
    missing = [key for key in REQUIRED if key not in checkpoint]
    if checkpoint.get("Format") == 2 and missing:
        raise UserError(f"The checkpoint lacks {', '.join(missing)}.", where=str(path))
    if checkpoint.get("Format") != 2:
        raise UserError(
            "The file is not a checkpoint of a run of s3prl-mtl.",
            where=str(path),
            fix="-k takes fairseq checkpoints; -e and -a take runs and their states-*.ckpt.",
        )
    return checkpoint


def read_tensors(path: Path) -> Checkpoint:
    """Read a dictionary of tensors and plain values that any program wrote, s3prl for one.

    Classes that such files name, as `argparse.Namespace`, become stand-ins that do nothing.

    Raises:
        UserError: as `load`.
    """
    checkpoint = load_inert(path, kind="checkpoint", verify=True)
    if not isinstance(checkpoint, dict):
        raise UserError("The file holds no dictionary of weights.", where=str(path))
    return checkpoint


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

    What a process left that was killed while it saved goes too.
    """
    for path in [*states_files(folder)[:-count], *folder.glob(".states-*.partial")]:
        path.unlink(missing_ok=True)


def locate(run: Path, flag: str = "-e") -> Path:
    """The checkpoint that a path names: the file itself, or the newest of a run's folder.

    Args:
        run: the path.
        flag: what gave it, for errors.

    Raises:
        UserError: there is neither.
    """
    if run.is_file():
        return run
    files = states_files(run)
    if not files:
        raise UserError(
            f"{run} holds no states-*.ckpt." if run.is_dir() else f"{run} does not exist.",
            where=flag,
            fix="Give the folder of a run, or one of its .ckpt files.",
        )
    return files[-1]


def load_newest(run: Path, flag: str = "-e", *, set_aside: bool = True) -> tuple[Checkpoint, Path]:
    """Read the newest checkpoint of a run that is whole, and say where an older one has to do.

    A damaged newer one is renamed to `states-<step>.ckpt.damaged`, so that `keep_newest` does not
    take it for the newest. No file is renamed unless an older one is whole.

    Args:
        run: the folder of a run; or a file, which is then read whatever lies beside it.
        flag: what gave the path, for errors.
        set_aside: rename the damaged ones. False for who only reads; of several processes that
            read the same run, only one may rename.

    Returns:
        the checkpoint, and the file that it is from.

    Raises:
        DamagedFile: the file that was given, or every file of the folder, is damaged.
        UserError: as `locate`, or as `load` for anything but damage: a file that cannot be read
            now, or that another program wrote, is nothing to pass over.
    """
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
                "%s is left out (kept as %s): %s Going on from %s instead.",
                other,
                kept_as,
                damage.what,
                path.name,
            )
        return checkpoint, path
    reasons = " ".join(f"{path.name}: {damage.what}" for path, damage in damaged)
    raise DamagedFile(
        f"None of the checkpoints in {run} is whole. {reasons}",
        where=flag,
        fix="Give another run, or put back copies of these files.",
    )


def _set_aside(path: Path) -> Path:
    """Rename a damaged file to a name that nothing looks for and nothing has."""
    aside = path.with_name(f"{path.name}.damaged")
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    try:
        path.rename(aside)
    except OSError as cause:
        # Left where it is, it would be kept as the newest, and the whole ones deleted.
        raise UserError(
            f"{path.name} is damaged and could not be renamed: {cause.strerror}.",
            where=str(path),
            fix="Make the folder writable, or move the file away.",
        ) from cause
    return aside


def _sync_folder(folder: Path) -> None:
    # Without this a power cut may lose the rename although the file itself is on the disk.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_write_error(error: RuntimeError) -> bool:
    text = str(error)
    return "PytorchStreamWriter" in text or "unexpected pos" in text or "write" in text


def _write_reason(error: OSError | RuntimeError) -> str:
    """Why a write failed: torch hides the system's reason behind an error of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return "the disk is full, or a limit on the size of files was reached"


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as cause:
        logger.warning("%s could not be removed: %s", path, cause)
