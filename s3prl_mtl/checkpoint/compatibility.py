"""Whether weights have the size of what they are for, in words that a person would use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from s3prl_mtl.errors import UserError
from s3prl_mtl.upstreams import Featurizer, Upstream

FIRST_LAYERS = ("projector.weight", "connector.weight", "model.rnn.weight_ih_l0")
"""Of the nine tasks' heads: the layers that read the features."""

_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_WIDTH = re.compile(r"(?:^|\.)layers?\.0\.(?:.*\.)?(?:layer_norm|LayerNorm|.*_layer_norm)\.weight$")


_FIX_ENCODER = (
    "Name the upstream that the checkpoint was trained from (-u, -k), or another checkpoint."
)


def check_encoder(weights: Mapping[str, Any], upstream: Upstream, where: str) -> None:
    """Refuse the weights of an encoder with other layers, or of another kind.

    Args:
        weights: by name.
        upstream: what they are for.
        where: what gave them, for errors.

    Raises:
        UserError: another number of layers, layers of another width, or none of its parameters.
    """
    state = upstream.state_dict()
    found, own = _size(weights), _size(state)
    if own is not None:
        check_size(weights, *own, where)
    if weights and not _own_names(weights) & _own_names(state):
        size = f" of {_say(*found)}" if found is not None else ""
        parameters = "none of these parameters" if state else "no parameters"
        raise UserError(
            f"The checkpoint holds an encoder{size}, and that of this run is of another kind: it "
            f"has {parameters}.",
            where=where,
            fix=_FIX_ENCODER,
        )


def check_size(weights: Mapping[str, Any], layers: int, width: int, where: str) -> None:
    """Refuse the weights of an encoder with other layers than these.

    Raises:
        UserError: another number of layers, or layers of another width.
    """
    found = _size(weights)
    if found is not None and found != (layers, width):
        raise UserError(
            f"The checkpoint holds an encoder of {_say(*found)}, and that of this run has "
            f"{_say(layers, width)}.",
            where=where,
            fix=_FIX_ENCODER,
        )


def check_selection(
    weights: Mapping[str, Any], upstream: Upstream, featurizer: Featurizer, where: str
) -> None:
    """Refuse a featurizer's weights for another number of hidden states.

    Raises:
        UserError: says which `-s` has as many.
    """
    saved = len(weights["weights"]) if "weights" in weights else 0
    own = len(featurizer.weights) if featurizer.weights is not None else 0
    if saved == own:
        return
    by_count = {
        0: "last_hidden_state",
        upstream.num_hidden_states - 1: "layer_results",
        upstream.num_hidden_states: "hidden_states",
    }
    raise UserError(
        f"The checkpoint weighs {saved} hidden states, and this run {own}.",
        where=where,
        fix=f"Take -s {by_count[saved]}."
        if saved in by_count
        else "Name the upstream that the checkpoint was trained with.",
    )


def check_head(task: str, weights: Mapping[str, Any], expert: nn.Module, where: str) -> None:
    """Refuse a head that reads features of another width.

    Raises:
        UserError: names both widths.
    """
    own = expert.state_dict()
    for layer in FIRST_LAYERS:
        if layer in own and layer in weights and own[layer].dim() == weights[layer].dim() == 2:
            wanted, found = own[layer].shape[1], weights[layer].shape[1]
            if wanted != found:
                raise UserError(
                    f"The head of {task} reads features of width {found}, and the upstream gives "
                    f"features of width {wanted}.",
                    where=where,
                    fix="Name the upstream that the head was trained with, or another head.",
                )


def _own_names(weights: Mapping[str, Any]) -> set[str]:
    """Names without what programs put before those of the model that they wrap."""
    return {name.removeprefix("expert.").removeprefix("model.") for name in weights}


def _say(layers: int, width: int) -> str:
    return f"{layers} layers of width {width}"


def _size(weights: Mapping[str, Any]) -> tuple[int, int] | None:
    """Layers and their width; None for an encoder without layers that are named so."""
    numbers = [int(match.group(1)) for name in weights if (match := _LAYER.search(name))]
    widths = [
        value.shape[0]
        for name, value in weights.items()
        if isinstance(value, Tensor) and value.dim() == 1 and _WIDTH.search(name)
    ]
    return (max(numbers) + 1, widths[0]) if numbers and widths else None
