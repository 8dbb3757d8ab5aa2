"""Load the weights of a checkpoint into the modules of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from s3prl_mtl.checkpoint.compatibility import check_encoder
from s3prl_mtl.checkpoint.contents import NamedExpert, RunCheckpoint
from s3prl_mtl.upstreams import Upstream
from s3prl_mtl.upstreams.strict_loading import load_strictly

_PREFIX = "model."


def restore_weights(
    saved: RunCheckpoint, upstream: Upstream, featurizer: nn.Module, tasks: Iterable[NamedExpert]
) -> None:
    """Load the weights of a checkpoint into modules, strictly.

    Raises:
        UserError: they do not fit.
    """
    where = "the checkpoint"
    if saved.upstream:
        encoder = encoder_weights(saved.upstream)
        check_encoder(encoder, upstream, where)
        load_strictly(upstream, encoder, "the encoder", where)
    load_strictly(featurizer, saved.featurizer, "the featurizer", where)
    for task in tasks:
        if not getattr(task.expert, "is_trained", True):
            continue
        part = saved.tasks[task.name]
        load_strictly(task.expert, part.head, f"the head of {task.name}", where)
        if hasattr(task.expert, "decision"):
            task.expert.decision = dict(part.decision)


def encoder_weights(upstream: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of an encoder without the prefix `model.` that s3prl's upstreams have."""
    named = dict(upstream)
    bare = {name.removeprefix(_PREFIX): value for name, value in named.items()}
    # An expert may have parameters of the same name within its `model` and beside it.
    return bare if len(bare) == len(named) else named
