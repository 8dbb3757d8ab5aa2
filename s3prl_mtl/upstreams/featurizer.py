"""Weighted sum of the hidden states of an upstream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.upstreams.base import HiddenStates, Upstream

SELECTIONS = ("hidden_states", "layer_results", "last_hidden_state")


class Featurizer(nn.Module):
    """Learned weighted sum over layers (SUPERB, Yang et al., 2021, section 3).

    The weights are softmax-normalised and start uniform; the parameter is called ``weights``, as
    in s3prl.

    Args:
        upstream: produces the hidden states.
        feature_selection: ``hidden_states`` uses all of them, ``layer_results`` all except index 0
            (the input of the first layer), ``last_hidden_state`` only the last one, without
            weights.

    Attributes:
        output_dim: width D of the features.
        downsample_rate: samples from one frame to the next.

    Raises:
        UserError: an unknown ``feature_selection``.
    """

    def __init__(self, upstream: Upstream, feature_selection: str = "hidden_states") -> None:
        super().__init__()
        if feature_selection not in SELECTIONS:
            raise UserError(
                f"Unknown feature selection {feature_selection!r}.",
                where="-s / --upstream_feature_selection",
                fix=nearest(feature_selection, list(SELECTIONS)),
                code="unknown-name",
            )
        first = 1 if feature_selection == "layer_results" else 0
        if upstream.num_hidden_states <= first:
            raise UserError(
                "'layer_results' is empty: this upstream has a single hidden state.",
                where="-s / --upstream_feature_selection",
                fix="Use 'hidden_states'.",
                code="conflicting-options",
            )
        self.feature_selection = feature_selection
        self.output_dim = upstream.hidden_size
        self.downsample_rate = upstream.downsample_rate
        self.weights: nn.Parameter | None = None
        if feature_selection != "last_hidden_state":
            self.weights = nn.Parameter(torch.zeros(upstream.num_hidden_states - first))

    def forward(self, hidden: HiddenStates) -> list[Tensor]:
        """Packed hidden states -> the features ``(T_i, D)`` of each utterance."""
        if self.weights is None:
            features = hidden.layers[-1]
        else:
            layers = hidden.layers[-len(self.weights) :]
            features = _WeightedSum.apply(torch.softmax(self.weights, dim=0), *layers)
        return hidden.by_utterance(features)

    def layer_weights(self) -> list[float]:
        """The softmax weight of each hidden state, adding up to 1; empty without weights."""
        if self.weights is None:
            return []
        return torch.softmax(self.weights.detach().double(), dim=0).tolist()


class _WeightedSum(torch.autograd.Function):
    """The sum of tensors times weights, in at least float32, without a stacked copy of them."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *layers)
        total = torch.zeros_like(
            layers[0], dtype=torch.promote_types(layers[0].dtype, torch.float32)
        )
        for weight, layer in zip(weights, layers, strict=True):
            total.addcmul_(layer, weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (weights, *layers), gradient = ctx.saved_tensors, gradients[0]
        to_weights = torch.stack([torch.sum(gradient * layer) for layer in layers])
        to_layers = [
            torch.mul(gradient, weight, out=torch.empty_like(layer)) if needed else None
            for weight, layer, needed in zip(weights, layers, ctx.needs_input_grad[1:], strict=True)
        ]
        return to_weights.to(weights.dtype), *to_layers
