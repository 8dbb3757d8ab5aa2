"""From the folder of a run to a :class:`TrainedRun`: which tasks, and what they are built from."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import restore_weights
from s3prl_mtl.config import Config, build_config, resolve
from s3prl_mtl.errors import UserError
from s3prl_mtl.inference.predictions import gives_answers, no_answers
from s3prl_mtl.inference.trained import TrainedRun
from s3prl_mtl.registry.plugins import load_task, split_name
from s3prl_mtl.registry.task_names import Packages, installed_package, require_in_run, task_packages
from s3prl_mtl.s3prl_compat.task_spec import is_s3prl_task
from s3prl_mtl.training.build import build_experts, build_upstream, pick_device
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams import Featurizer
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder

logger = logging.getLogger(__name__)


def load(
    run: str | os.PathLike[str], tasks: Sequence[str] | None = None, device: str = "auto"
) -> TrainedRun:
    """A trained run, ready for use. Nothing of its corpora is needed.

    Args:
        run: the folder of a run (its newest checkpoint), or one of its `.ckpt` files.
        tasks: which heads to load, by any word for them (`asv`, `package:ks`); None loads all. Of
            experts of s3prl it loads those that can be imported and have `predict`.
        device: `auto`, `cpu`, `cuda` or `cuda:<number>`.

    Raises:
        UserError: there is no such run or task, the package of a task is not installed, or the
            checkpoint is damaged or of other code.
    """
    return load_run(run, tasks, device, where="load")


def load_run(
    run: str | os.PathLike[str], tasks: Sequence[str] | None, device: str, where: str
) -> TrainedRun:
    """As :func:`load`; `where` is what gave the run, for errors."""
    if isinstance(tasks, str):
        raise TypeError(f"tasks is a list of names: load(run, tasks=[{tasks!r}])")
    place = pick_device(device)
    saved, _ = checkpoints.load_newest(Path(run), flag=where, set_aside=False)
    packages = _packages(saved, list(saved["Tasks"]) if tasks is None else list(tasks), run)
    config = _config(saved, packages, run)
    left_out = _left_out(config, packages) if tasks is None else {}
    for name, reason in left_out.items():
        logger.warning("%s is left out. %s", name, reason)
        del packages[name]
    for name, package in packages.items():
        config[name]["package"] = package
    upstream = build_upstream(config, saved).to(place)
    selection = config["upstream"]["feature_selection"]
    featurizer = Featurizer(upstream, selection).to(place)
    with tempfile.TemporaryDirectory() as folder:
        try:
            experts = build_experts(config, list(packages), featurizer, Path(folder), saved)
        except UserError as error:
            raise _without_labels(error, saved, run) from error
    for name, expert in experts.items():
        if not gives_answers(expert):
            logger.warning("%s is not asked. %s", name, no_answers(name, type(expert)))
    tasks_by_name = {
        name: Task.from_settings(name, expert.to(place), config[name])
        for name, expert in experts.items()
    }
    restore_weights(saved, upstream, featurizer, tasks_by_name.values())
    encoding = SharedEncoder(upstream, featurizer, place, freeze=True, bf16=False)
    return TrainedRun(encoding, tasks_by_name, saved["Step"], packages, left_out)


def _packages(
    saved: checkpoints.Checkpoint, words: Sequence[str], run: str | os.PathLike[str]
) -> dict[str, str | None]:
    """The tasks of a checkpoint that words mean, and the packages that their plugins are of."""
    held = task_packages(saved["Config"], saved["Tasks"])
    packages: dict[str, str | None] = {}
    for word in words:
        name = require_in_run(word, held, str(run))
        if is_s3prl_task(name):
            packages[name] = None
        else:
            packages[name] = installed_package(name, held[name] or split_name(word)[0])
    return packages


def _left_out(config: Config, packages: Packages) -> dict[str, UserError]:
    """The experts of s3prl that nobody asked for and that can say nothing, with the reasons.

    Checkpoints hold no label spaces of theirs: to build them takes their corpora.
    """
    left_out = {}
    for name in filter(is_s3prl_task, packages):
        try:
            expert_class = load_task(name, folder=config[name].get("folder"))
        except UserError as reason:
            left_out[name] = reason
        else:
            if not gives_answers(expert_class):
                left_out[name] = no_answers(name, expert_class)
    return left_out


def _config(
    saved: checkpoints.Checkpoint, packages: Packages, run: str | os.PathLike[str]
) -> Config:
    """The config of a checkpoint, complete; that of the branch is a layer over the defaults."""
    if "Origin" not in saved:
        return _resolve_without_data(saved["Config"])
    words = [f"{package}:{task}" for task, package in packages.items()]
    try:
        return resolve(build_config(flags={"downstream": words}, base=saved["Config"]))
    except UserError as error:
        raise _without_labels(error, saved, run) from error


def _without_labels(
    error: UserError, saved: checkpoints.Checkpoint, run: str | os.PathLike[str]
) -> UserError:
    """The same error; of a checkpoint without label spaces, with why corpora are needed."""
    if "Origin" not in saved:
        return error
    return UserError(
        f"The checkpoint is of {saved['Origin']}, which saves no label spaces: they are read from "
        f"the corpora of its config. {error}",
        where=str(run),
        fix="Set SUPERB_DATA to the folder that holds the corpora, or train a run that starts "
        "from it (-i), which will hold the label spaces.",
    )


def _resolve_without_data(config: Mapping[str, Any]) -> Config:
    """The config of a run, its references filled in also where the corpora are not set here."""
    return resolve({**config, "data": config.get("data") or ""})
