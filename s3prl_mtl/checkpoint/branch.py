"""Read the checkpoints of s3prl's multi-task branch, `states-*.ckpt` and `<task>/*-best.ckpt`.

They hold `Upstream`, `Featurizer`, a state dict for each task under its name, `Epoch.<task>`,
`Step`, `Args`, `Config`, and two optimizers and schedules, which are ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from s3prl_mtl.checkpoint.contents import RunCheckpoint, TaskCheckpoint
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.fileio.safe_torch import to_plain
from s3prl_mtl.mtl_branch.block import BranchBlock, Notes
from s3prl_mtl.mtl_branch.config import translate
from s3prl_mtl.mtl_branch.tasks import task_of
from s3prl_mtl.upstreams.hubert.config import HubertConfig

logger = logging.getLogger(__name__)

ORIGIN = "s3prl's multi-task branch"
"""`Origin` of these checkpoints: their `Config` is incomplete and `Labels` are absent."""

_EPOCH = "Epoch."
_WEIGHT_OF_LOSS = "log_sigma"
_WRAPPED = "module."

# Upstreams of s3prl that read fairseq's checkpoints.
_FAIRSEQ_FILES = ("hubert_local", "hubert_custom", "hubert_url")

# The encoders that s3prl downloads by name, with the settings of their fairseq checkpoints.
_BASE = HubertConfig(dropout_input=0.1, feature_grad_mult=0.1)
_LARGE = HubertConfig(
    extractor_mode="layer_norm",
    encoder_layers=24,
    encoder_embed_dim=1024,
    encoder_ffn_embed_dim=4096,
    encoder_attention_heads=16,
    layer_norm_first=True,
    normalize=True,
    dropout=0.0,
    attention_dropout=0.0,
)
_OFFICIAL = {"hubert": _BASE, "hubert_base": _BASE, "hubert_large_ll60k": _LARGE}


def is_of_branch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the branch wrote a checkpoint, judging by its keys."""
    return (
        "Format" not in checkpoint
        and {"Step", "Args", "Config", "Featurizer"} <= set(checkpoint)
        and any(str(key).startswith(_EPOCH) for key in checkpoint)
    )


def from_branch(checkpoint: Mapping[str, Any], path: Path) -> RunCheckpoint:
    """Convert a checkpoint of the branch, to evaluate or to start from.

    `upstream` is empty if the encoder was frozen: the branch does not save it then. `config` is a
    layer over the defaults, not a whole config.

    Args:
        checkpoint: content of the file.
        path: the file, for errors.

    Raises:
        UserError: a task that is not one of the nine, missing weights, or a part of the wrong type.
    """
    settings = to_plain(checkpoint["Config"])
    arguments = to_plain(checkpoint["Args"])
    names = [str(key).removeprefix(_EPOCH) for key in checkpoint if str(key).startswith(_EPOCH)]
    for name in names:
        if name not in checkpoint:
            raise UserError(
                f"The checkpoint lacks the head of {name!r}.",
                where=f"{name} in {path}",
                code="checkpoint-incomplete",
            )
    parts = {name: checkpoint[name] for name in (*names, "Featurizer")}
    parts |= {"Config": settings, "Args": arguments, "Upstream": checkpoint.get("Upstream") or {}}
    for key, value in parts.items():
        if not isinstance(value, Mapping):
            raise UserError(
                f"`{key}` of the checkpoint must be a mapping, not {type(value).__name__}.",
                where=f"{key} in {path}",
                fix="Give an unmodified checkpoint of the branch.",
                code="checkpoint-format",
            )
    if not isinstance(checkpoint["Step"], int):
        raise UserError(
            f"`Step` of the checkpoint must be an integer, not {checkpoint['Step']!r}.",
            where=f"Step in {path}",
            code="checkpoint-format",
        )
    tasks = {_task(name, settings, path): name for name in names}
    encoder = unwrapped(checkpoint.get("Upstream") or {})
    upstream, ckpt = arguments.get("upstream"), arguments.get("upstream_ckpt")
    config = {
        **_config(settings, path),
        "upstream": {
            "name": "hubert" if upstream in _FAIRSEQ_FILES else upstream,
            "ckpt": ckpt,
            "config": arguments.get("upstream_model_config"),
            "feature_selection": _selection(arguments, checkpoint["Featurizer"]),
            "freeze": not arguments.get("upstream_trainable", False),
        },
        "seed": arguments.get("seed", 1337),
        "downstream": list(tasks),
    }
    return RunCheckpoint(
        step=checkpoint["Step"],
        skips={},  # Absent counts are zero.
        config=config,
        upstream=encoder,
        upstream_info=_official(upstream, encoder) if encoder and not ckpt else None,
        featurizer=unwrapped(checkpoint["Featurizer"]),
        tasks={
            task: TaskCheckpoint(_head(checkpoint[name]), labels=None, decision={})
            for task, name in tasks.items()
        },
        origin=ORIGIN,
    )


def _task(name: str, settings: Mapping[str, Any], path: Path) -> str:
    if name not in settings:
        raise UserError(
            f"The config of the checkpoint has no block {name!r}.",
            where=f"Config.{name} in {path}",
            code="checkpoint-incomplete",
        )
    return task_of(BranchBlock(settings[name], f"Config.{name}", path, Notes()))


def _config(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        # The settings were not written for this run: do not report keys without a meaning.
        return translate(settings, path, DeferredLog())
    except UserError as mistake:
        # The weights are usable without the settings.
        logger.warning("Ignoring the settings in %s: %s", path, mistake)
        return {}


def _selection(arguments: Mapping[str, Any], featurizer: Mapping[str, Any]) -> str:
    """The feature selection; a featurizer without weights is the output of the last layer."""
    if not featurizer:
        return "last_hidden_state"
    return str(arguments.get("upstream_feature_selection", "layer_results"))


def unwrapped(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the prefix of DistributedDataParallel from the names of weights."""
    return {name.removeprefix(_WRAPPED): value for name, value in weights.items()}


def _head(weights: Mapping[str, Any]) -> dict[str, Any]:
    """A head without the loss weight that `--auto_loss_weights` adds in the branch."""
    return {name: value for name, value in unwrapped(weights).items() if name != _WEIGHT_OF_LOSS}


def _official(upstream: object, encoder: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `UpstreamInfo` of an official encoder: rebuilds it without its fairseq checkpoint."""
    config = _OFFICIAL.get(str(upstream))
    if config is None:
        return None
    bare = {name.removeprefix("model."): value for name, value in encoder.items()}
    shapes = {name: value.shape for name, value in bare.items() if isinstance(value, torch.Tensor)}
    values = config.to_dict()
    values["final_proj_dim"] = shapes.get("final_proj.weight", (0,))[0]
    values["label_embeddings"] = list(shapes.get("label_embs_concat", (0, 0)))
    return {"kind": "hubert", "config": values, "fairseq_header": None}
