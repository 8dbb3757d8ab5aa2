"""Build the parts of a run from its config or a checkpoint."""

from __future__ import annotations

import inspect
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.config import RunConfig
from s3prl_mtl.data.perturbation import Perturbation
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.registry.plugins import (
    OUR_PACKAGE,
    find_upstream,
    load_task,
    split_name,
    tasks_named,
)
from s3prl_mtl.registry.task_names import Packages, same_name_tasks, task_packages
from s3prl_mtl.tasks.base import TaskExpert
from s3prl_mtl.tasks.contract import check_class
from s3prl_mtl.training.preflight import (
    check_plain,
    corpus_problems,
    raise_together,
    split_mistakes,
)
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams import Featurizer, Upstream, load_upstream, rebuild_upstream
from s3prl_mtl.upstreams.shared_encoder import check_can_mask

logger = logging.getLogger(__name__)


def build_upstream(config: RunConfig, saved: RunCheckpoint | None = None) -> Upstream:
    """Build the encoder named in the config, or the one stored in a checkpoint."""
    if saved is not None and saved.upstream_info is not None:
        return rebuild_upstream(saved.upstream_info, config.upstream.trust_remote_code)
    settings = config.upstream
    offered = {
        # Unknown to all upstreams but those of Hugging Face, which then say so.
        "trust_remote_code": settings.trust_remote_code or None,
        "cache_dir": config.cache_dir and str(config.cache_dir),
        "model_config": _read_upstream_config(settings.config),
    }
    options = {name: value for name, value in offered.items() if value is not None}
    factory = find_upstream(settings.name)
    if factory is not None:
        # Only upstreams that download take the cache.
        parameters = inspect.signature(factory).parameters
        if "cache_dir" not in parameters:
            options.pop("cache_dir", None)
        if "model_config" in options and "model_config" not in parameters:
            raise UserError(
                f"The upstream {settings.name!r} does not take a config file.",
                where="-g",
                code="conflicting-options",
            )
    return load_upstream(settings.name, settings.ckpt and str(settings.ckpt), **options)


def check_layouts(
    config: RunConfig, names: Sequence[str], saved: RunCheckpoint | None = None
) -> None:
    """Check the folders of the corpora of tasks, before an encoder is built or downloaded.

    Args:
        config: of the run.
        names: the tasks.
        saved: a checkpoint of the run, whose label spaces replace corpora.

    Raises:
        UserError: one report of all problems.
    """
    labels = _label_spaces(saved)
    classes = _expert_classes(config, names, saved)
    read = {name: kind for name, kind in classes.items() if labels.get(name) is None}
    problems = corpus_problems(config, read)
    raise_together([mistake for found in problems.values() for mistake in found])


def build_experts(
    config: RunConfig,
    names: Sequence[str],
    upstream: Upstream,
    featurizer: Featurizer,
    folder: Path,
    saved: RunCheckpoint | None = None,
) -> dict[str, Any]:
    """Build the experts of tasks, with the label spaces of a checkpoint if given.

    Assumes the layouts of corpora that :func:`check_layouts` has checked.

    Args:
        config: of the run.
        names: the tasks.
        upstream: the encoder.
        featurizer: source of the heads' features.
        folder: of the run.
        saved: a checkpoint of the run.

    Raises:
        UserError: one report of all problems with the corpora of the tasks.
    """
    labels = _label_spaces(saved)
    mistakes: list[UserError] = []
    experts = {}
    for name, expert_class in _expert_classes(config, names, saved).items():
        logger.info("Building task %s.", name)
        # The initial weights of a head do not depend on the other tasks of the run.
        with torch.random.fork_rng():
            torch.manual_seed(config.seed + zlib.crc32(name.encode()))
            try:
                experts[name] = build_expert(
                    expert_class,
                    config,
                    name,
                    folder,
                    upstream_dim=featurizer.output_dim,
                    upstream_rate=featurizer.downsample_rate,
                    labels=labels.get(name),
                    upstream=upstream,
                )
                check_can_mask(name, experts[name], upstream)
                check_plain(name, experts[name])
                _set_data_rules(experts[name], name, config)
            except UserError as mistake:
                mistakes.append(mistake)
            except Exception as cause:
                _raise_fault_of_plugin(name, config.tasks[name].package, cause)
                raise
    if mistakes:
        # Usually done later; scan here to report the problems of all tasks together.
        for name, expert in experts.items():
            mistakes += split_mistakes(Task.from_settings(name, expert, config.tasks[name]))
    raise_together(mistakes)
    return experts


def _expert_classes(
    config: RunConfig, names: Sequence[str], saved: RunCheckpoint | None
) -> dict[str, type]:
    """The classes of the experts of tasks, which the checkpoint has if it is given."""
    classes = {
        name: load_task(name, config.tasks[name].package, folder=config.tasks[name].folder)
        for name in names
    }
    held = task_packages(saved.config, saved.tasks) if saved is not None else None
    for name, expert_class in classes.items():
        check_class(name, expert_class)
        _check_in_checkpoint(name, expert_class, held)
    return classes


def _label_spaces(saved: RunCheckpoint | None) -> dict[str, Any]:
    """The label spaces of a checkpoint; those of the branch and of s3prl's experts have none."""
    return {name: task.labels for name, task in saved.tasks.items()} if saved is not None else {}


def build_expert(
    expert_class: type,
    config: RunConfig,
    name: str,
    folder: Path,
    *,
    upstream_dim: int,
    upstream_rate: int,
    labels: Any = None,
    upstream: Upstream | None = None,
) -> Any:
    """Build the expert of a task.

    Args:
        expert_class: of the task.
        config: of the run.
        name: of the task.
        folder: of the run.
        upstream_dim: width of the features.
        upstream_rate: samples per frame.
        labels: the label space, in place of the corpus.
        upstream: the encoder, for classes whose constructor has a parameter of this name; None if
            only the corpus of the expert is used.
    """
    # s3prl's experts write into their folder without creating it.
    (folder / name).mkdir(parents=True, exist_ok=True)
    takes_upstream = "upstream" in inspect.signature(expert_class).parameters
    return expert_class(
        upstream_dim=upstream_dim,
        upstream_rate=upstream_rate,
        downstream_expert=config.tasks[name].downstream_expert,
        expdir=str(folder / name),
        cache_dir=config.cache_dir and str(config.cache_dir),
        seed=config.seed,
        **({} if labels is None else {"labels": labels}),
        **({"upstream": upstream} if takes_upstream else {}),
    )


def _set_data_rules(expert: Any, name: str, config: RunConfig) -> None:
    """Set the share of the training data and the perturbation of waveforms.

    Raises:
        UserError: the task reads its data itself, its labels do not allow another speed, or a
            setting is wrong.
    """
    fraction, perturb = config.tasks[name].fraction, config.perturb
    rules = {f"{name}.fraction": fraction != 1.0}
    effects = {f"perturb.{key}": getattr(perturb, key) for key in ("noise", "reverb", "speed")}
    rules |= {key: bool(value) for key, value in effects.items()}
    wanted = [key for key, is_set in rules.items() if is_set]
    if not wanted:
        return
    if not isinstance(expert, TaskExpert) or expert.has_own_loader:
        raise UserError(
            f"{name} reads its data itself.",
            where=", ".join(wanted),
            fix="Leave out these settings, or the task.",
            code="not-supported",
        )
    if perturb.speed and expert.has_timed_labels:
        raise UserError(
            f"The labels of {name} are positions in the audio: its speed cannot be changed.",
            where="perturb.speed (--speed)",
            fix="Leave out the speed, or the task.",
            code="not-supported",
        )
    expert.fraction = fraction
    if not any(effects.values()):
        return
    expert.perturbs_training = perturb.splits == "train"
    expert.perturbation = Perturbation(
        noise=perturb.noise,
        snr=perturb.snr,
        reverb=perturb.reverb,
        speeds=perturb.speed,
        probability=perturb.probability,
    )


def _check_in_checkpoint(name: str, expert_class: type, held: Packages | None) -> None:
    """Check that a task can be trained, or that the checkpoint contains it.

    Args:
        held: the tasks of the checkpoint; None when training starts without one.
    """
    learns = getattr(expert_class, "is_trained", True)
    if held is None and not learns:
        raise UserError(
            f"The task {name} has no trained parameters: it can only be evaluated.",
            where="-d",
            fix=f"Train without it, then: s3prl-mtl evaluate -e RUN -d {name}.",
            code="not-supported",
        )
    if held is not None and learns and name not in held:
        same = same_name_tasks(name, held)
        others = [other for other in held if split_name(other)[1] != split_name(name)[1]]
        raise UserError(
            f"The checkpoint has no task {name!r}.",
            where="-d",
            fix="Its tasks: " + ", ".join([*same, *others]) + ".",
            code="unknown-name",
        )


def _raise_fault_of_plugin(task: str, package: str | None, cause: Exception) -> None:
    """Raise a `UserError` with the package of an expert that failed, unless it is ours."""
    for plugin in tasks_named(split_name(task)[1]):
        if plugin.package == package != OUR_PACKAGE:
            raise UserError(
                f"The expert of task {task!r} cannot be built: {type(cause).__name__}: {cause}.",
                where=f"{plugin.entry_point.value} of package {plugin}",
                fix="Check the task's block of the config. Run with --verbose for the traceback.",
                code="expert-failed",
            ) from cause


def _read_upstream_config(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    return read_yaml(path, "-g")
