"""Load a :class:`TrainedRun` from the folder of a run."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.checkpoint.restore import restore_weights
from s3prl_mtl.config import RunConfig, build_config, resolve
from s3prl_mtl.errors import UserError
from s3prl_mtl.inference.predictions import has_predict, no_predict_error
from s3prl_mtl.inference.trained import TrainedRun
from s3prl_mtl.inference.transcribing import GREEDY, Transcribing
from s3prl_mtl.registry.plugins import load_task, split_name
from s3prl_mtl.registry.task_names import Packages, installed_package, require_in_run, task_packages
from s3prl_mtl.s3prl_compat.task_spec import is_s3prl_task
from s3prl_mtl.training.build import build_experts, build_upstream, check_layouts
from s3prl_mtl.training.device import pick_device
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams import Featurizer
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder

logger = logging.getLogger(__name__)


def load(
    run: str | os.PathLike[str],
    tasks: Sequence[str] | None = None,
    device: str = "auto",
    *,
    decoder: Mapping[str, Any] | None = None,
    nbest: int = 1,
    timestamps: bool = False,
    trust_remote_code: bool = False,
) -> TrainedRun:
    """Load a trained run for predictions; its corpora are not needed.

    Args:
        run: the folder of a run (its newest checkpoint), or one of its `.ckpt` files.
        tasks: names or aliases of the tasks to load (`asv`, `package:ks`); None loads all, of
            s3prl's experts those that can be imported and have `predict`.
        device: `auto`, `cpu`, `cuda` or `cuda:<number>`.
        decoder: of speech recognition, in place of the run's: settings by name, such as
            `{"lm": "4-gram.arpa", "lexicon": "words.txt"}` (see docs/decoding.md).
        nbest: transcripts of a prediction of speech recognition; above 1 they are in `nbest`.
        timestamps: give predictions of transcripts `times`.
        trust_remote_code: execute modelling code of the repository of the encoder. Not taken from
            the run, which may be anybody's.

    Raises:
        UserError: there is no such run or task, the package of a task is not installed, the
            checkpoint is damaged or from another program, or no task takes one of the last three.
    """
    options = Transcribing(decoder, nbest, timestamps)
    return load_run(
        run,
        tasks,
        device,
        where="load",
        transcribing=options,
        trust_remote_code=trust_remote_code,
    )


def load_run(
    run: str | os.PathLike[str],
    tasks: Sequence[str] | None,
    device: str,
    where: str,
    transcribing: Transcribing = GREEDY,
    trust_remote_code: bool = False,
) -> TrainedRun:
    """Load a run as :func:`load` does; `where` names the caller, for errors."""
    if isinstance(tasks, str):
        raise TypeError(f"tasks is a list of names: load(run, tasks=[{tasks!r}])")
    place = pick_device(device)
    saved, _ = checkpoints.load_newest(Path(run), flag=where, set_aside=False)
    packages = _packages(saved, list(saved.tasks) if tasks is None else list(tasks), run)
    config = _config(saved, packages, run)
    skipped = _not_loadable(config, packages) if tasks is None else {}
    for name, reason in skipped.items():
        logger.warning("Skipping %s. %s", name, reason)
        del packages[name]
    chosen = {name: replace(config.tasks[name], package=packages[name]) for name in packages}
    encoder_settings = replace(config.upstream, trust_remote_code=trust_remote_code)
    config = replace(config, tasks=chosen, upstream=encoder_settings)
    config = transcribing.decode_in(config)
    try:
        check_layouts(config, list(packages), saved)
    except UserError as error:
        raise _without_labels(error, saved, run) from error
    upstream = build_upstream(config, saved).to(place)
    selection = config.upstream.feature_selection
    featurizer = Featurizer(upstream, selection).to(place)
    with tempfile.TemporaryDirectory() as folder:
        try:
            experts = build_experts(
                config, list(packages), upstream, featurizer, Path(folder), saved
            )
        except UserError as error:
            raise _without_labels(error, saved, run) from error
    transcribing.apply(experts)
    for name, expert in experts.items():
        if not has_predict(expert):
            logger.warning("No predictions of %s. %s", name, no_predict_error(name, type(expert)))
    tasks_by_name = {
        name: Task.from_settings(name, expert.to(place), config.tasks[name])
        for name, expert in experts.items()
    }
    restore_weights(saved, upstream, featurizer, experts)
    encoder = SharedEncoder(upstream, featurizer, place, freeze=True, bf16=False)
    return TrainedRun(encoder, tasks_by_name, saved.step, packages, skipped)


def _packages(
    saved: RunCheckpoint, words: Sequence[str], run: str | os.PathLike[str]
) -> dict[str, str | None]:
    """The tasks of a checkpoint for names or aliases, with the packages of their plugins."""
    held = task_packages(saved.config, saved.tasks)
    packages: dict[str, str | None] = {}
    for word in words:
        name = require_in_run(word, held, str(run))
        if is_s3prl_task(name):
            packages[name] = None
        else:
            packages[name] = installed_package(name, held[name] or split_name(word)[0])
    return packages


def _not_loadable(config: RunConfig, packages: Packages) -> dict[str, UserError]:
    """The experts of s3prl that cannot be imported or have no `predict`, with the errors.

    Checkpoints have no label spaces of s3prl's experts: building them needs their corpora.
    """
    skipped = {}
    for name in filter(is_s3prl_task, packages):
        try:
            expert_class = load_task(name, folder=config.tasks[name].folder)
        except UserError as reason:
            skipped[name] = reason
        else:
            if not has_predict(expert_class):
                skipped[name] = no_predict_error(name, expert_class)
    return skipped


def _config(saved: RunCheckpoint, packages: Packages, run: str | os.PathLike[str]) -> RunConfig:
    """The config of a checkpoint, completed by the defaults if it is of the branch."""
    if saved.origin is None:
        # References to the corpora resolve also where SUPERB_DATA is not set.
        return resolve({**saved.config, "data": saved.config.get("data") or ""})
    words = [f"{package}:{task}" for task, package in packages.items()]
    try:
        return resolve(build_config(flags={"downstream": words}, base=saved.config))
    except UserError as error:
        raise _without_labels(error, saved, run) from error


def _without_labels(
    error: UserError, saved: RunCheckpoint, run: str | os.PathLike[str]
) -> UserError:
    """The error; for a checkpoint without label spaces with the reason why corpora are needed."""
    if saved.origin is None:
        return error
    return UserError(
        f"The checkpoint is from {saved.origin}, which saves no label spaces: they are read from "
        f"the corpora of its config. {error}",
        where=str(run),
        fix="Set SUPERB_DATA to the folder of the corpora, or train a run that starts from it "
        "(-i), which will contain the label spaces.",
        code="checkpoint-incomplete",
    )
