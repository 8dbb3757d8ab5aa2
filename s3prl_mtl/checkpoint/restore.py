"""Load the weights of a checkpoint into the modules of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from s3prl_mtl.checkpoint.compatibility import check_encoder
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.upstreams import Upstream
from s3prl_mtl.upstreams.strict_loading import load_strictly

_PREFIX = "model."


def restore_weights(
    saved: RunCheckpoint, upstream: Upstream, featurizer: nn.Module, experts: Mapping[str, Any]
) -> None:
    """Load the weights of a checkpoint into modules, strictly.

    Args:
        saved: the checkpoint.
        upstream: left as it is where the checkpoint has no encoder.
        featurizer: its weighted sum of layers.
        experts: by task; those whose `is_trained` is False are left out.

    Raises:
        UserError: they do not fit.
    """
    where = str(saved.file or "the checkpoint")
    if saved.upstream:
        load_encoder(saved.upstream, upstream, where)
    load_strictly(featurizer, saved.featurizer, "the featurizer", where)
    for name, expert in experts.items():
        if not getattr(expert, "is_trained", True):
            continue
        head = head_for(expert, saved.tasks[name].head, of_s3prl=saved.origin is not None)
        load_strictly(expert, head, f"the head of {name}", where)
        if hasattr(expert, "decision"):
            expert.decision = dict(saved.tasks[name].decision)


def head_for(expert: Any, head: Mapping[str, Any], of_s3prl: bool) -> Mapping[str, Any]:
    """The state dict of a head as an expert loads it.

    Args:
        expert: of this run.
        head: the saved state dict.
        of_s3prl: s3prl or its branch trained it.
    """
    convert = getattr(expert, "from_s3prl", None)
    return convert(head) if of_s3prl and convert is not None else head


def load_encoder(saved: Mapping[str, Any], upstream: Upstream, where: str) -> None:
    """Load the weights of an encoder, strictly.

    Args:
        saved: state dict, with or without the prefix `model.`.
        upstream: the encoder.
        where: what gave the weights, for errors.

    Raises:
        UserError: they do not fit.
    """
    weights = encoder_weights(saved)
    check_encoder(weights, upstream, where)
    load_strictly(upstream, weights, "the encoder", where)


def encoder_weights(upstream: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of an encoder without the prefix `model.` that s3prl's upstreams have."""
    named = dict(upstream)
    bare = {name.removeprefix(_PREFIX): value for name, value in named.items()}
    # An expert may have parameters of the same name within its `model` and beside it.
    return bare if len(bare) == len(named) else named
