"""HuBERT's Transformer over packed frames; parameter names are fairseq's ``encoder``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.dropout import dropout
from s3prl_mtl.upstreams.hubert.packing import LengthGroup, split_by_group

# On a CPU, torch's grouped convolution is slow with few channels per group and compiles a kernel
# for every length. On 53 utterances (100 s in total) products of blocks take a third of its time
# with hubert_tiny's 12 channels, and about as long with Base's 48.
MIN_CHANNELS = 16
BLOCK_FRAMES = 8


class TransformerEncoder(nn.Module):
    """Positional convolution and Transformer layers, post-norm (Base) or pre-norm (Large)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv = nn.Sequential(PositionalConvolution(config), nn.GELU())
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.encoder_embed_dim)

    def forward(self, x: Tensor, groups: list[LengthGroup]) -> list[Tensor]:
        """Packed frames ``(sum T, D)`` -> the hidden states, each ``(sum T, D)``.

        The first is the input of the first layer, followed by the output of each layer; in a
        pre-norm encoder the last one is after the final norm. A layer skipped by LayerDrop passes
        on its input, so that the number of states is constant.
        """
        config = self.config
        x = x + self.pos_conv[1](self.pos_conv[0](x, groups)).to(x.dtype)
        if not config.layer_norm_first:
            x = self.layer_norm(x)
        x = dropout(x, config.dropout, self.training)
        states = [x]
        for layer in self.layers:
            dropped = (
                self.training
                and config.encoder_layerdrop > 0
                and torch.rand(()).item() < config.encoder_layerdrop
            )
            if not dropped:
                x = layer(x, groups)
            states.append(x)
        if config.layer_norm_first:
            states[-1] = self.layer_norm(x)
        return states


class PositionalConvolution(nn.Module):
    """Grouped convolution over time with weight norm over dimension 2 (the kernel's positions).

    One trailing frame is dropped for even kernels, so that T frames stay T frames.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.kernel, self.groups = config.conv_pos, config.conv_pos_groups
        width = config.encoder_embed_dim
        self.bias = nn.Parameter(torch.zeros(width))
        std = math.sqrt(4.0 / (self.kernel * width))
        weight = torch.empty(width, width // self.groups, self.kernel).normal_(std=std)
        self.weight_g = nn.Parameter(_norm_per_position(weight))
        self.weight_v = nn.Parameter(weight)

    def forward(self, x: Tensor, groups: list[LengthGroup]) -> Tensor:
        """Packed frames ``(sum T, D)`` -> ``(sum T, D)``."""
        weight = self.weight_v * (self.weight_g / _norm_per_position(self.weight_v))
        narrow = x.shape[1] // self.groups < MIN_CHANNELS
        if x.device.type == "cpu" and narrow and not torch.compiler.is_exporting():
            lengths = [length for group in groups for length in group.lengths]
            return _convolve_in_blocks(x, lengths, weight, self.groups) + self.bias
        outputs = []
        for group, rows in zip(groups, split_by_group(x, groups), strict=True):
            padded = group.pad(rows)
            y = F.conv1d(
                padded.transpose(1, 2),
                weight,
                self.bias,
                padding=self.kernel // 2,
                groups=self.groups,
            )
            outputs.append(group.unpad(y[..., : padded.shape[1]].transpose(1, 2)))
        return torch.cat(outputs)


def _convolve_in_blocks(x: Tensor, lengths: list[int], weight: Tensor, groups: int) -> Tensor:
    """Convolution of each utterance over time as products of blocks of frames.

    The utterances form one signal with half a kernel of zeros before each. A block of
    ``BLOCK_FRAMES`` outputs is a sum of products, one per block of inputs in its window:

        inputs    |0 0 a a|a a a 0|0 b b b|b 0 0 0|
        outputs   |a a a a|a . . b|b b b .|             out[j] = sum over i of in[j + i] @ W[i]

    Args:
        x: packed frames ``(sum T, D)``.
        lengths: frames of each utterance.
        weight: ``(D, D / groups, kernel)``.
        groups: of channels.

    Returns:
        ``(sum T, D)``, without a bias.
    """
    width, channels, kernel = weight.shape
    gap = kernel // 2
    seen = -(-(kernel + BLOCK_FRAMES - 1) // BLOCK_FRAMES)
    blocks = -(-(sum(lengths) + gap * len(lengths)) // BLOCK_FRAMES)
    frames = (blocks + seen - 1) * BLOCK_FRAMES
    zeros = x.new_zeros(gap, width)
    pieces = [piece for rows in x.split(lengths) for piece in (zeros, rows)]
    tail = frames - sum(lengths) - gap * len(lengths)
    signal = torch.cat([*pieces, x.new_zeros(tail, width)])

    # W[i] has kernel position i * BLOCK_FRAMES + p - q at input frame p and output frame q.
    shifted = F.pad(weight, (BLOCK_FRAMES - 1, seen * BLOCK_FRAMES - kernel))
    shifted = shifted.unfold(2, seen * BLOCK_FRAMES, 1).flip(2)
    shifted = shifted.view(groups, channels, channels, BLOCK_FRAMES, seen, BLOCK_FRAMES)
    products = shifted.permute(4, 0, 5, 2, 3, 1).reshape(
        seen, groups, BLOCK_FRAMES * channels, BLOCK_FRAMES * channels
    )

    by_group = signal.view(-1, BLOCK_FRAMES, groups, channels).permute(2, 0, 1, 3)
    inputs = by_group.reshape(groups, -1, BLOCK_FRAMES * channels)
    outputs = torch.bmm(inputs[:, :blocks], products[0])
    for behind in range(1, seen):
        outputs = torch.baddbmm(outputs, inputs[:, behind : behind + blocks], products[behind])
    outputs = outputs.view(groups, blocks, BLOCK_FRAMES, channels).permute(1, 2, 0, 3)

    sizes = [size for length in lengths for size in (length, gap)]
    rest = blocks * BLOCK_FRAMES - sum(sizes)
    rows = outputs.reshape(-1, width).split([*sizes, rest])
    return torch.cat(rows[:-1:2])


def _norm_per_position(weight: Tensor) -> Tensor:
    """``(out, in, kernel)`` -> ``(1, 1, kernel)``."""
    return torch.linalg.vector_norm(weight, dim=(0, 1), keepdim=True)


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each with its residual and its LayerNorm."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.config = config
        self.activation = activation(config.activation_fn)
        self.self_attn = SelfAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = _linear(width, config.encoder_ffn_embed_dim)
        self.fc2 = _linear(config.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, groups: list[LengthGroup]) -> Tensor:
        """``(sum T, D)`` -> ``(sum T, D)``."""
        if self.config.layer_norm_first:
            x = x + self._attend(self.self_attn_layer_norm(x), groups)
            return x + self._feed_forward(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self._attend(x, groups))
        return self.final_layer_norm(x + self._feed_forward(x))

    def _attend(self, x: Tensor, groups: list[LengthGroup]) -> Tensor:
        return dropout(self.self_attn(x, groups), self.config.dropout, self.training)

    def _feed_forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x))
        x = self.fc2(dropout(x, self.config.activation_dropout, self.training))
        return dropout(x, self.config.dropout, self.training)


class SelfAttention(nn.Module):
    """Multi-head attention within each utterance, on packed frames."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.heads = config.encoder_attention_heads
        self.dropout = config.attention_dropout
        self.k_proj = _linear(width, width)
        self.v_proj = _linear(width, width)
        self.q_proj = _linear(width, width)
        self.out_proj = _linear(width, width)

    def forward(self, x: Tensor, groups: list[LengthGroup]) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        # One product instead of three; the parameters keep fairseq's names.
        packed = F.linear(
            x,
            torch.cat([projection.weight for projection in projections]),
            torch.cat([projection.bias for projection in projections]),
        )
        outputs = []
        for group, rows in zip(groups, split_by_group(packed, groups), strict=True):
            padded = group.pad(rows)
            batch, time, _ = padded.shape
            query, key, value = (
                padded.view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            )
            attended = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=None if group.mask is None else group.mask[:, None, None, :],
                dropout_p=self.dropout if self.training else 0.0,
            )
            outputs.append(group.unpad(attended.transpose(1, 2).reshape(batch, time, -1)))
        return self.out_proj(torch.cat(outputs))


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


def _linear(width_in: int, width_out: int) -> nn.Linear:
    """A linear layer initialised as BERT's: normal with standard deviation 0.02, bias 0."""
    linear = nn.Linear(width_in, width_out)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
