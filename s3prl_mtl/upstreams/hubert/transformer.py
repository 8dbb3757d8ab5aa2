"""HuBERT's Transformer over packed frames; parameter names are fairseq's ``encoder``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from s3prl_mtl.upstreams.hubert.attention import SelfAttention
from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.dropout import dropout
from s3prl_mtl.upstreams.hubert.layers import Pair, in_precision, layer_norm, make_linear
from s3prl_mtl.upstreams.hubert.positional import FixedBatchNorm, PositionalConvolution
from s3prl_mtl.upstreams.hubert.segments import Segments


class TransformerEncoder(nn.Module):
    """Positional convolution and Transformer layers, post-norm (Base) or pre-norm (Large).

    Attributes:
        recompute: compute a layer's activations again in the backward pass instead of keeping them.
    """

    recompute = False

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv = nn.Sequential(PositionalConvolution(config), nn.GELU())
        if config.conv_pos_batch_norm:
            self.pos_conv.insert(0, FixedBatchNorm(config.encoder_embed_dim))
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.encoder_embed_dim)

    def forward(self, x: Tensor, segments: Segments) -> list[Tensor]:
        """Packed frames ``(sum T, D)`` -> the hidden states, each ``(sum T, D)``.

        The first is the input of the first layer, followed by the output of each layer; in a
        pre-norm encoder the last one is after the final norm. A layer skipped by LayerDrop passes
        on its input, so that the number of states is constant.
        """
        config = self.config
        *norm, convolution, gelu = self.pos_conv
        positions = norm[0](x) if norm else x
        x = x + gelu(convolution(positions, segments))
        if not config.layer_norm_first:
            x = layer_norm(x, self.layer_norm)
        x = dropout(x, config.dropout, self.training)
        states = [x]
        recompute = self.recompute and torch.is_grad_enabled()
        for layer in self.layers:
            dropped = (
                self.training
                and config.encoder_layerdrop > 0
                and torch.rand(()).item() < config.encoder_layerdrop
            )
            if not dropped and recompute:
                x = checkpoint(layer, x, segments, use_reentrant=False)
            elif not dropped:
                x = layer(x, segments)
            states.append(x)
        if config.layer_norm_first:
            states[-1] = layer_norm(x, self.layer_norm)
        return states


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each with its residual and its LayerNorm."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.config = config
        self.activation = activation(config.activation_fn)
        self.self_attn = SelfAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = make_linear(width, config.encoder_ffn_embed_dim)
        self.fc2 = make_linear(config.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """``(sum T, D)`` -> ``(sum T, D)``."""
        *projections, fc1, fc2, norm1, norm2 = in_precision(
            x.dtype,
            *self.self_attn.projections(),
            *(self.fc1, self.fc2, self.self_attn_layer_norm, self.final_layer_norm),
        )

        def normalise(x: Tensor, norm: Pair) -> Tensor:
            return F.layer_norm(x, x.shape[1:], *norm, self.final_layer_norm.eps)

        def attend(x: Tensor) -> Tensor:
            return self._dropout(self.self_attn(x, segments, projections))

        def feed_forward(x: Tensor) -> Tensor:
            x = self.activation(F.linear(x, *fc1))
            x = dropout(x, self.config.activation_dropout, self.training)
            return self._dropout(F.linear(x, *fc2))

        if self.config.layer_norm_first:
            x = x + attend(normalise(x, norm1))
            return x + feed_forward(normalise(x, norm2))
        x = normalise(x + attend(x), norm1)
        return normalise(x + feed_forward(x), norm2)

    def _dropout(self, x: Tensor) -> Tensor:
        return dropout(x, self.config.dropout, self.training)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """fairseq's activation of that name (one of ``config.ACTIVATIONS``)."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "gelu": F.gelu,
        "gelu_accurate": _gelu_tanh,
        "gelu_fast": _gelu_tanh,
        "relu": F.relu,
        "tanh": torch.tanh,
        "linear": nn.Identity(),
        "swish": F.silu,
    }
    return functions[name]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")
