"""Weighted sum of the hidden states of an upstream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
            features = hidden.states[-1]
        else:
            states = hidden.states[-len(self.weights) :]
            # Full precision under autocast: the product is cheap, and the weights change slowly.
            with torch.autocast(states.device.type, enabled=False):
                shares = torch.softmax(self.weights, dim=0).to(states.dtype)
                features = torch.tensordot(shares, states, dims=1)
        return list(features.split(hidden.lengths))

    def layer_weights(self) -> list[float]:
        """The softmax weight of each hidden state, adding up to 1; empty without weights."""
        if self.weights is None:
            return []
        return torch.softmax(self.weights.detach().double(), dim=0).tolist()
