"""Start a run from the weights of other runs: `-i` and `--init_upstream_ckpt`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.branch import unwrapped
from s3prl_mtl.checkpoint.compatibility import check_head, check_selection
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.checkpoint.restore import head_for, load_encoder
from s3prl_mtl.config import RunConfig
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import split_name
from s3prl_mtl.registry.task_names import Packages, find_same_task, same_name_tasks, task_packages
from s3prl_mtl.training.summary import ENCODER, FEATURIZER
from s3prl_mtl.upstreams import Featurizer, Upstream
from s3prl_mtl.upstreams.strict_loading import load_strictly
from s3prl_mtl.upstreams.zoo.huggingface import HUGGING_FACE

logger = logging.getLogger(__name__)


def load_initial_weights(
    config: RunConfig, upstream: Upstream, featurizer: Featurizer, experts: Mapping[str, nn.Module]
) -> dict[str, str]:
    """Start from other runs: `--init_upstream_ckpt` for the encoder, `-i` for the rest.

    `-i` names a checkpoint of a run, whose encoder, featurizer and heads of the same tasks of the
    same packages are loaded; or a folder with heads of single-task runs of s3prl,
    `<task>/<upstream>_<task>.ckpt` with `Downstream`, where <task> is the name without a package.

    Returns:
        the file of each part that was loaded: the encoder, the featurizer, and heads by name.

    Raises:
        UserError: a file is missing, or its weights do not fit.
    """
    sources: dict[str, str] = {}
    if config.init_ckpt:
        path = Path(config.init_ckpt)
        if path.is_dir() and not checkpoints.states_files(path):
            sources |= _load_single_heads(path, _file_stem(config.upstream.name), experts)
        else:
            file = checkpoints.locate(path, "-i")
            saved = checkpoints.load(file)
            packages = {name: config.tasks[name].package for name in experts}
            loaded = _load_from_run(saved, upstream, featurizer, experts, packages, f"-i {file}")
            sources |= dict.fromkeys(loaded, f"-i {file}")
    return sources | load_initial_encoder(config, upstream)


def load_initial_encoder(config: RunConfig, upstream: Upstream) -> dict[str, str]:
    """Load `--init_upstream_ckpt` into the encoder, if it is set.

    Returns:
        its file, as `load_initial_weights` does.

    Raises:
        UserError: the file has no encoder, or another one.
    """
    if not config.init_upstream_ckpt:
        return {}
    flag = "--init_upstream_ckpt"
    path = checkpoints.locate(Path(config.init_upstream_ckpt), flag)
    # Files of s3prl have the key `Upstream`, too.
    weights = checkpoints.read_tensors(path).get("Upstream")
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(
            f"{path} has no encoder.",
            where=flag,
            fix="Give a run that trained its encoder, or a pre-trained encoder with -k.",
            code="checkpoint-incomplete",
        )
    load_encoder(unwrapped(weights), upstream, f"{flag} {path}")
    return {ENCODER: f"{flag} {path}"}


def _load_from_run(
    saved: RunCheckpoint,
    upstream: Upstream,
    featurizer: Featurizer,
    experts: Mapping[str, nn.Module],
    packages: Packages,
    where: str,
) -> list[str]:
    """Load what the run has, and return the names of the loaded parts."""
    loaded = [FEATURIZER]
    if saved.upstream:
        load_encoder(saved.upstream, upstream, where)
        loaded.append(ENCODER)
    else:
        logger.info("The run of -i froze its encoder: the pre-trained one is kept.")
    check_selection(saved.featurizer, upstream, featurizer, where)
    load_strictly(featurizer, saved.featurizer, "the featurizer", where)
    held = task_packages(saved.config, saved.tasks)
    for name, expert in experts.items():
        other = find_same_task(name, packages[name], held)
        same = same_name_tasks(name, held)
        if other is not None:
            head = head_for(expert, saved.tasks[other].head, of_s3prl=saved.origin is not None)
            _start_head(name, expert, head, where)
            loaded.append(name)
        elif same:
            logger.warning(
                "-i has a head of %s, but the task here is of package %s: its head starts from "
                "random weights.",
                *(" and ".join(same), packages[name]),
            )
        else:
            logger.info("-i has no head of %s: it starts from random weights.", name)
    return loaded


def _file_stem(upstream_name: str) -> str:
    """The name of an upstream in file names: the last part of a path."""
    return Path(upstream_name.removeprefix(HUGGING_FACE)).name


def _load_single_heads(
    folder: Path, upstream_name: str, experts: Mapping[str, nn.Module]
) -> dict[str, str]:
    sources = {}
    for name, expert in experts.items():
        # Files of s3prl have task names without packages.
        plain = split_name(name)[1]
        path = folder / plain / f"{upstream_name}_{plain}.ckpt"
        if not path.is_file():
            raise UserError(
                f"The file with the head of {name} does not exist.",
                where=f"-i, {path}",
                fix=f"Put {folder}/<task>/{upstream_name}_<task>.ckpt there for every task of -d.",
                code="checkpoint-missing",
            )
        saved = checkpoints.read_tensors(path)
        if not isinstance(saved.get("Downstream"), Mapping):
            raise UserError(
                f"{path} has no weights under the key `Downstream`.",
                where="-i",
                code="checkpoint-format",
            )
        _start_head(name, expert, head_for(expert, saved["Downstream"], of_s3prl=True), str(path))
        sources[name] = f"-i {path}"
    return sources


def _start_head(name: str, expert: nn.Module, weights: Mapping[str, Any], where: str) -> None:
    """Load a head, but keep the best score: this run selects its own best checkpoint."""
    own = getattr(expert, "best_score", None)
    score = own.clone() if isinstance(own, torch.Tensor) else None
    check_head(name, weights, expert, where)
    load_strictly(expert, weights, f"the head of {name}", where)
    if score is not None:
        expert.best_score.copy_(score)  # type: ignore[operator]
