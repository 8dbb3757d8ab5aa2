"""Run checkpoints: what they hold, and how they reach the disk without endangering older ones."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from s3prl_mtl.errors import UserError

logger = logging.getLogger(__name__)

STATES_PATTERN = re.compile(r"states-(\d+)\.ckpt")

Checkpoint = dict[str, Any]
"""Tensors and plain Python values only. Keys:

`Format` 1 · `Step` · `Config` · `Upstream` (state dict, fairseq's names under `model.` as s3prl has
them) · `UpstreamInfo` (what rebuilds the encoder without its original file) · `Featurizer` ·
`Tasks` {task: `Downstream` (the expert's state dict), `Labels`, `Decision`, `Stream`} · and in
`states-*.ckpt` also `Optimizer`, `Scheduler`, `Random`.
"""


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
            f"The checkpoint could not be saved: {cause}. Earlier checkpoints are intact.",
            where=str(path),
            fix="Free space on that disk or make the folder writable, then resume with -a.",
        ) from cause


def load(path: Path, map_location: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint; nothing in it is ever executed.

    Raises:
        UserError: the file is missing, damaged, holds foreign classes, or is no checkpoint of ours.
    """
    checkpoint = read_tensors(path, map_location)
    if checkpoint.get("Format") != 1:
        raise UserError(
            "The file is not a checkpoint of a run of s3prl-mtl.",
            where=str(path),
            fix="-k takes fairseq checkpoints; -e and -a take runs and their states-*.ckpt.",
        )
    return checkpoint


def read_tensors(path: Path, map_location: str | torch.device = "cpu") -> Checkpoint:
    """Read a dictionary of tensors and plain values that any program wrote, s3prl for one.

    The class `argparse.Namespace`, which s3prl's files name, is taken as an inert stand-in.

    Raises:
        UserError: as `load`.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise UserError("There is no such checkpoint.", where=str(path)) from None
    except pickle.UnpicklingError as cause:
        raise UserError(
            f"The file is refused, it holds more than tensors and plain values: {_reason(cause)}",
            where=str(path),
        ) from cause
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError, KeyError) as cause:
        raise UserError(
            f"The checkpoint cannot be read, it is damaged or incomplete: {_reason(cause)}",
            where=str(path),
            fix="Use an older one of the run.",
        ) from cause
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
    """Delete all but the newest `states-*.ckpt`. Call it after the newest one is on the disk."""
    for path in states_files(folder)[:-count]:
        path.unlink(missing_ok=True)


def locate(run: Path) -> Path:
    """The checkpoint that a path names: the file itself, or the newest of a run's folder.

    Raises:
        UserError: there is neither.
    """
    if run.is_file():
        return run
    files = states_files(run)
    if not files:
        raise UserError(
            f"{run} holds no states-*.ckpt." if run.is_dir() else f"{run} does not exist.",
            where="-e",
            fix="Give the folder of a run, or one of its .ckpt files.",
        )
    return files[-1]


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


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as cause:
        logger.warning("%s could not be removed: %s", path, cause)


def _reason(error: BaseException) -> str:
    """The sentence that names the cause: torch puts advice on unsafe loading before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (named or lines or [type(error).__name__])[0]
