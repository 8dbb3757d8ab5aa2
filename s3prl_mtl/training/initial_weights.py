"""Start a run from the weights of other runs: `-i` and `--init_upstream_ckpt`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.branch import unwrapped
from s3prl_mtl.checkpoint.compatibility import check_head, check_selection
from s3prl_mtl.checkpoint.restore import head_for, load_encoder
from s3prl_mtl.config import RunConfig
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import split_name
from s3prl_mtl.registry.task_names import Packages
from s3prl_mtl.training.summary import ENCODER, FEATURIZER, Source
from s3prl_mtl.training.weight_files import WeightFile, nothing_found, read_weights, weight_files
from s3prl_mtl.upstreams import Featurizer, Upstream
from s3prl_mtl.upstreams.strict_loading import load_strictly
from s3prl_mtl.upstreams.zoo.huggingface import HUGGING_FACE

logger = logging.getLogger(__name__)


def load_initial_weights(
    config: RunConfig, upstream: Upstream, featurizer: Featurizer, experts: Mapping[str, nn.Module]
) -> dict[str, Source]:
    """Start from other runs: `-i` for all parts, `--init_upstream_ckpt` for the encoder.

    `-i` names files and folders (see :func:`weight_files`); heads are matched by task and package.
    The encoder and the featurizer are loaded if all runs of `-i` that have a task of this run have
    the same; otherwise they are left as they are, with a warning. With `init_heads_only` they are
    left as they are in any case.

    Args:
        config: of the run.
        upstream: the encoder.
        featurizer: its weighted sum of layers.
        experts: the tasks of this rank.

    Returns:
        the source of each part that was loaded: the encoder, the featurizer, and heads by name.

    Raises:
        UserError: a file is missing, its weights do not fit, or two files have one task.
    """
    # All tasks of the run: every rank has to load the same encoder.
    packages = {name: config.tasks[name].package for name in config.downstream}
    found: dict[str, list[_Found]] = {}
    for path in config.init_ckpt or ():
        for file in _read(path, _file_stem(config.upstream.name), packages):
            for part, weights in _parts(file).items():
                if config.init_heads_only and part in (ENCODER, FEATURIZER):
                    continue
                found.setdefault(part, []).append(_Found(file.source, weights, file.of_s3prl))
            # Compared here, so that one encoder is in memory.
            for part in (ENCODER, FEATURIZER):
                _drop_equal(found.get(part, []))
    for name in packages:
        _require_one(name, found.get(name, []))
    if config.init_upstream_ckpt:
        found.pop(ENCODER, None)
    for part in (ENCODER, FEATURIZER):
        if len(found.get(part, [])) > 1:
            logger.warning(
                "The runs of -i have different weights of the %s, such as %s and %s: it keeps its "
                "own.%s",
                *(part, *(entry.source.file for entry in found.pop(part)[:2])),
                " --init_upstream_ckpt names one." if part == ENCODER else "",
            )
    # An encoder of another size is the cause of heads that do not fit.
    found = {part: found[part] for part in (ENCODER, FEATURIZER, *packages) if part in found}
    for part, (entry,) in found.items():
        where = f"-i {entry.source.file}"
        if part == ENCODER:
            load_encoder(entry.weights, upstream, where)
        elif part == FEATURIZER:
            check_selection(entry.weights, upstream, featurizer, where)
            load_strictly(featurizer, entry.weights, "the featurizer", where)
        elif part in experts:
            head = head_for(experts[part], entry.weights, of_s3prl=entry.of_s3prl)
            _start_head(part, experts[part], head, where)
    sources = {part: entry.source for part, (entry,) in found.items()}
    return sources | load_initial_encoder(config, upstream)


@dataclass
class _Found:
    """Weights of one part in a file; `weights` is empty once they are known to be refused."""

    source: Source
    weights: Mapping[str, Any]
    of_s3prl: bool


def _read(path: Path, upstream: str, packages: Packages) -> Iterator[WeightFile]:
    """The files of one `-i`; those in a folder only if they have a head of this run."""
    files = weight_files(path, upstream, {split_name(name)[1] for name in packages})
    is_run = path.is_file() or bool(checkpoints.states_files(path))
    useful = False
    for file in files:
        weights = read_weights(file, packages)
        for name, others in (weights.others or {}).items():
            logger.warning(
                "%s has a head of %s, but the task here is of package %s.",
                *(file, " and ".join(others), packages[name]),
            )
        if is_run or weights.heads:
            useful = True
            yield weights
    if not useful:
        raise nothing_found(path, upstream)


def _parts(file: WeightFile) -> dict[str, Mapping[str, Any]]:
    """The weights of a file by part; the encoder and the featurizer of whole runs only."""
    parts = dict(file.heads)
    if file.run is not None:
        parts[FEATURIZER] = file.run.featurizer
        if file.run.upstream:  # The branch does not save a frozen encoder.
            parts[ENCODER] = file.run.upstream
    return parts


def _drop_equal(entries: list[_Found]) -> None:
    """Drop the last entry if it equals the first, otherwise its weights, which are not loaded."""
    if len(entries) < 2:
        return
    first, last = entries[0].weights, entries[-1].weights
    if first.keys() == last.keys() and all(torch.equal(first[key], last[key]) for key in first):
        entries.pop()
    else:
        entries[-1].weights = {}


def _require_one(name: str, entries: Sequence[_Found]) -> None:
    if len(entries) > 1:
        raise UserError(
            f"{len(entries)} files have a head of {name}: "
            f"{' and '.join(str(entry.source.file) for entry in entries)}.",
            where="-i",
            fix="Name one of them, and the files of the other tasks each with an -i of its own.",
            code="ambiguous-name",
        )


def load_initial_encoder(config: RunConfig, upstream: Upstream) -> dict[str, Source]:
    """Load `--init_upstream_ckpt` into the encoder, if it is set.

    Returns:
        its source, as `load_initial_weights` does.

    Raises:
        UserError: the file has no encoder, or another one.
    """
    if not config.init_upstream_ckpt:
        return {}
    flag = "--init_upstream_ckpt"
    path = checkpoints.locate(Path(config.init_upstream_ckpt), flag)
    # Files of s3prl have the key `Upstream`, too.
    content = checkpoints.read_tensors(path)
    weights, step = content.get("Upstream"), content.get("Step")
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(
            f"{path} has no encoder.",
            where=flag,
            fix="Give a run that trained its encoder, or a pre-trained encoder with -k.",
            code="checkpoint-incomplete",
        )
    load_encoder(unwrapped(weights), upstream, f"{flag} {path}")
    return {ENCODER: Source("encoder", step if isinstance(step, int) else None, path)}


def _file_stem(upstream_name: str) -> str:
    """The name of an upstream in file names: the last part of a path."""
    return Path(upstream_name.removeprefix(HUGGING_FACE)).name


def _start_head(name: str, expert: nn.Module, weights: Mapping[str, Any], where: str) -> None:
    """Load a head, but keep the best score: this run selects its own best checkpoint."""
    own = getattr(expert, "best_score", None)
    score = own.clone() if isinstance(own, torch.Tensor) else None
    check_head(name, weights, expert, where)
    load_strictly(expert, weights, f"the head of {name}", where)
    if score is not None:
        expert.best_score.copy_(score)  # type: ignore[operator]
