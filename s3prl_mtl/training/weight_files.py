"""Find and read the checkpoint files that `-i` names."""

from __future__ import annotations

import glob
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.best import SUFFIX, best_files, best_of
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.safe_torch import to_plain
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.mtl_branch.tasks import single_task_of
from s3prl_mtl.registry.plugins import split_name
from s3prl_mtl.registry.task_names import (
    BUILT_IN_TASKS,
    Packages,
    find_same_task,
    same_name_tasks,
    task_packages,
)
from s3prl_mtl.training.summary import Source


@dataclass(frozen=True)
class WeightFile:
    """Weights to start from, as one file has them.

    Args:
        source: for the log.
        heads: state dict of the head of each task that the run has too.
        of_s3prl: s3prl or its branch trained the heads.
        run: the checkpoint; None for a single head of s3prl.
        others: for tasks of the run that the file has of another package only: these.
    """

    source: Source
    heads: Mapping[str, Mapping[str, Any]]
    of_s3prl: bool
    run: RunCheckpoint | None = None
    others: Mapping[str, list[str]] | None = None


def weight_files(path: Path, upstream: str, tasks: Collection[str]) -> list[Path]:
    """The files that `-i PATH` stands for.

    A file stands for itself, the folder of a run for its newest `states-*.ckpt`, the folder of a
    task for its best checkpoint. Any other folder stands for the files of its subfolders: from a
    run of a single task its best checkpoint if it has one, otherwise the newest; heads of s3prl are
    `<upstream>_<task>.ckpt`.

    Args:
        path: a file or folder.
        upstream: the name in the file names of heads.
        tasks: plain names of the tasks of the run; runs without any of them are left out.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        checkpoints.locate(path, "-i")
    found = checkpoints.states_files(path)[-1:] or _of_a_task(path, upstream)
    for folder in [] if found else sorted(filter(Path.is_dir, path.iterdir())):
        found += _of_a_run(folder, tasks) or _of_a_task(folder, upstream)
    if not found:
        raise nothing_found(path, upstream)
    return found


def nothing_found(path: Path, upstream: str) -> UserError:
    """The error of a folder without weights of the tasks of the run."""
    return UserError(
        f"{path} has no weights of the tasks of -d.",
        where=f"-i {path}",
        fix="Give a run, a checkpoint, a folder of runs with these tasks, or a folder of heads of "
        f"s3prl, <task>/{upstream}_<task>.ckpt.",
        code="checkpoint-missing",
    )


def _of_a_run(folder: Path, tasks: Collection[str]) -> list[Path]:
    """The best checkpoint of a run of one task, or else the newest of a run."""
    states, best, config = checkpoints.states_files(folder)[-1:], best_files(folder), {}
    if (folder / "config.yaml").is_file():
        config = read_yaml(folder / "config.yaml", "-i")
        trained = config.get("downstream") or []
        if trained and not {split_name(name)[1] for name in trained} & set(tasks):
            return []
    if states and not (len(best) == 1 and len(config.get("downstream") or ()) == 1):
        # A run of s3prl has its best checkpoints beside the others.
        own = sorted(folder.glob(f"*{SUFFIX}"))
        return [best_of(folder.name, own, {})] if own else states
    return [best_of(task, files, config) for task, files in best.items()]


def _of_a_task(folder: Path, upstream: str) -> list[Path]:
    """The best checkpoint or the heads of s3prl in a folder."""
    best = sorted(folder.glob(f"*{SUFFIX}"))
    if best:
        file = folder.parent / "config.yaml"
        return [best_of(folder.name, best, read_yaml(file, "-i") if file.is_file() else {})]
    return sorted(folder.glob(f"{glob.escape(upstream)}_*.ckpt"))


def read_weights(file: Path, packages: Packages) -> WeightFile:
    """Read a file of weights to start from.

    Args:
        file: a checkpoint of a run, or a head of s3prl.
        packages: the tasks of the run, with their packages.

    Raises:
        UserError: it cannot be read, or does not show of which task it is.
    """
    content = checkpoints.read_tensors(file)
    if checkpoints.is_single_head(content):
        return _single_head(content, file, packages)
    saved = checkpoints.from_content(content, file)
    held = task_packages(saved.config, saved.tasks)
    found = {name: find_same_task(name, package, held) for name, package in packages.items()}
    others = {n: same_name_tasks(n, held) for n, other in found.items() if other is None}
    what = "best checkpoint" if file.name.endswith(SUFFIX) else "run"
    return WeightFile(
        Source(what if saved.origin is None else f"{what} of {saved.origin}", saved.step, file),
        {name: saved.tasks[other].head for name, other in found.items() if other is not None},
        of_s3prl=saved.origin is not None,
        run=saved,
        others={name: same for name, same in others.items() if same},
    )


def _single_head(content: Mapping[str, Any], file: Path, packages: Packages) -> WeightFile:
    if not isinstance(content["Downstream"], Mapping):
        raise UserError(
            f"{file} has no weights under the key `Downstream`.",
            where=f"-i {file}",
            code="checkpoint-format",
        )
    plain = {name: split_name(name)[1] for name in packages}
    # Files of s3prl have task names without packages.
    known = {*plain.values(), *BUILT_IN_TASKS, file.parent.name}
    tasks = {task for task in known if file.stem.endswith(f"_{task}")}
    if not tasks and "Args" in content:
        arguments, config = (to_plain(content.get(key) or {}) for key in ("Args", "Config"))
        tasks = {single_task_of(arguments, config, file)}
    if not tasks:
        raise UserError(
            "The file does not show which task its head is of.",
            where=f"-i {file}",
            fix=f"Rename it to {file.stem}_<task>.ckpt.",
            code="checkpoint-format",
        )
    step = content.get("Step")
    return WeightFile(
        Source("head of s3prl", step if isinstance(step, int) else None, file),
        {name: content["Downstream"] for name, task in plain.items() if task in tasks},
        of_s3prl=True,
    )
