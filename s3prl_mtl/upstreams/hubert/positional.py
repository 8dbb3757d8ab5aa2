"""HuBERT's positional convolution, over all utterances as one signal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.segments import Segments, on_gpu, rounded_length

# On a CPU, torch's grouped convolution is slow with few channels per group. Products of blocks take
# a third of its time with hubert_tiny's 12 channels, and more with Base's 48. A GPU uses them under
# bfloat16, for which cuDNN has no fast grouped convolution.
MIN_CHANNELS = 16
BLOCK_FRAMES = 8
# torch plans or compiles a convolution for each length: the signal is lengthened to one of 16 per
# octave.
LENGTHS_PER_OCTAVE = 16


class PositionalConvolution(nn.Module):
    """Grouped convolution over time with weight norm over dimension 2 (the kernel's positions).

    One trailing frame is dropped for even kernels, so that T frames stay T frames. With
    ``conv_pos_batch_norm`` the weight has no norm (see :class:`FixedBatchNorm`).
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.kernel, self.groups = config.conv_pos, config.conv_pos_groups
        self.has_weight_norm = not config.conv_pos_batch_norm
        width = config.encoder_embed_dim
        self.bias = nn.Parameter(torch.zeros(width))
        std = math.sqrt(4.0 / (self.kernel * width))
        weight = torch.empty(width, width // self.groups, self.kernel).normal_(std=std)
        if self.has_weight_norm:
            self.weight_g = nn.Parameter(_norm_per_position(weight))
            self.weight_v = nn.Parameter(weight)
        else:
            self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """Packed frames ``(sum T, D)`` -> ``(sum T, D)``; sums and norms are in float32."""
        if on_gpu(x) and x.dtype != self.bias.dtype:
            return self.over(x, segments, convolve_in_blocks).to(x.dtype)
        rows = x.to(self.bias.dtype)
        if torch.compiler.is_exporting():  # A single utterance.
            weight, half = self.normalised_weight(), self.kernel // 2
            y = F.conv1d(rows.t()[None], weight, self.bias, padding=half, groups=self.groups)
            return y[0, :, : rows.shape[0]].t().to(x.dtype)
        narrow = not on_gpu(x) and x.shape[1] // self.groups < MIN_CHANNELS
        convolve = convolve_in_blocks if narrow else convolve_signal
        return self.over(rows, segments, convolve).to(x.dtype)

    def over(
        self, rows: Tensor, segments: Segments, convolve: Callable[[Tensor, Tensor, int], Tensor]
    ) -> Tensor:
        """Convolve the utterances as one signal, with half a kernel of zeros around each."""
        half = self.kernel // 2
        positions, length = segments.spaced(half)
        signal = rows.new_zeros(length, rows.shape[1]).index_copy(0, positions, rows)
        # Outputs start half a kernel before the frame that they belong to.
        y = convolve(signal, self.normalised_weight(), self.groups)
        return y.index_select(0, positions - half) + self.bias

    def normalised_weight(self) -> Tensor:
        """``(D, D / groups, kernel)``."""
        if not self.has_weight_norm:
            return self.weight
        return self.weight_v * (self.weight_g / _norm_per_position(self.weight_v))


class FixedBatchNorm(nn.BatchNorm1d):
    """Batch norm of frames before the convolution, in place of its weight norm.

    It normalises by the statistics of pre-training, also in training: those of a batch would make
    the features of an utterance depend on the other utterances.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Packed frames ``(sum T, D)`` -> ``(sum T, D)``, computed in float32."""
        mean, variance = self.running_mean, self.running_var
        assert mean is not None and variance is not None
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((x.to(scale.dtype) - mean) * scale + self.bias).to(x.dtype)


def convolve_signal(signal: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Convolution over time by torch's kernel; see `convolve_in_blocks`."""
    signal = F.pad(signal, (0, 0, 0, rounded_length(len(signal), LENGTHS_PER_OCTAVE) - len(signal)))
    return F.conv1d(signal.t()[None], weight, groups=groups)[0].t()


def convolve_in_blocks(signal: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Convolution over time as products of blocks of frames.

    A block of ``BLOCK_FRAMES`` outputs is a sum of products, one per block of
    inputs in its window:

        inputs    |0 0 a a|a a a 0|0 b b b|b 0 0 0|
        outputs   |a a a a|a . . b|b b b .|             out[j] = sum over i of in[j + i] @ W[i]

    Args:
        signal: ``(N, D)``.
        weight: ``(D, D / groups, kernel)``.
        groups: of channels.

    Returns:
        at least ``(N - kernel + 1, D)``: output t is over the inputs t to t + kernel - 1.
    """
    width, channels, kernel = weight.shape
    seen = -(-(kernel + BLOCK_FRAMES - 1) // BLOCK_FRAMES)
    blocks = -(-max(1, len(signal) - kernel + 1) // BLOCK_FRAMES)
    if on_gpu(signal):
        blocks = rounded_length(blocks, LENGTHS_PER_OCTAVE)
    signal = F.pad(signal, (0, 0, 0, (blocks + seen - 1) * BLOCK_FRAMES - len(signal)))
    size = BLOCK_FRAMES * channels
    # W[i] has kernel position i * BLOCK_FRAMES + p - q at input frame p and output frame q.
    shifted = F.pad(weight, (BLOCK_FRAMES - 1, seen * BLOCK_FRAMES - kernel))
    shifted = shifted.unfold(2, seen * BLOCK_FRAMES, 1).flip(2)
    shifted = shifted.view(groups, channels, channels, BLOCK_FRAMES, seen, BLOCK_FRAMES)
    products = shifted.permute(4, 0, 5, 2, 3, 1).reshape(seen, groups, size, size)

    by_group = signal.view(-1, BLOCK_FRAMES, groups, channels).permute(2, 0, 1, 3)
    products = products.to(signal.dtype)
    multiply = _ProductOfWindows if on_gpu(signal) else _SumOfProducts
    outputs = multiply.apply(by_group.reshape(groups, -1, size), products)
    outputs = outputs.view(groups, -1, BLOCK_FRAMES, channels).permute(1, 2, 0, 3)
    return outputs.reshape(-1, width)


class _SumOfProducts(torch.autograd.Function):
    """``out[g, j]`` = sum over i of ``inputs[g, j + i] @ products[i, g]``, summed in place."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, products: Tensor) -> Tensor:
        """``(groups, M + seen - 1, K)``, ``(seen, groups, K, K)`` -> ``(groups, M, K)``."""
        ctx.save_for_backward(inputs, products)
        blocks = inputs.shape[1] - len(products) + 1
        outputs = torch.bmm(inputs[:, :blocks], products[0])
        for behind, product in enumerate(products[1:], 1):
            outputs.baddbmm_(inputs[:, behind : behind + blocks], product)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        (inputs, products), gradient = ctx.saved_tensors, gradients[0]
        blocks = gradient.shape[1]
        to_inputs, to_products = torch.zeros_like(inputs), torch.empty_like(products)
        for behind, product in enumerate(products):
            window = slice(behind, behind + blocks)
            to_inputs[:, window].baddbmm_(gradient, product.transpose(1, 2))
            torch.bmm(inputs[:, window].transpose(1, 2), gradient, out=to_products[behind])
        return to_inputs, to_products


class _ProductOfWindows(torch.autograd.Function):
    """`_SumOfProducts` as one product of copied windows: few, large kernels for a GPU."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, products: Tensor) -> Tensor:
        """``(groups, M + seen - 1, K)``, ``(seen, groups, K, K)`` -> ``(groups, M, K)``."""
        ctx.save_for_backward(inputs, products)
        return torch.bmm(_windows(inputs, len(products)), _stacked(products))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        (inputs, products), gradient = ctx.saved_tensors, gradients[0]
        seen, groups, size, _ = products.shape
        to_products = torch.bmm(_windows(inputs, seen).transpose(1, 2), gradient)
        # Input j is seen by the outputs j - seen + 1 to j.
        padded = F.pad(gradient, (0, 0, seen - 1, seen - 1))
        reversed_products = products.flip(0).transpose(2, 3)
        to_inputs = torch.bmm(_windows(padded, seen), _stacked(reversed_products))
        return to_inputs, to_products.view(groups, seen, size, size).transpose(0, 1)


def _windows(inputs: Tensor, seen: int) -> Tensor:
    """``(groups, M + seen - 1, K)`` -> the windows of each output, ``(groups, M, seen * K)``."""
    return inputs.unfold(1, seen, 1).transpose(2, 3).contiguous().flatten(2)


def _stacked(products: Tensor) -> Tensor:
    """``(seen, groups, K, K)`` -> ``(groups, seen * K, K)``."""
    return products.transpose(0, 1).flatten(1, 2)


def _norm_per_position(weight: Tensor) -> Tensor:
    """``(out, in, kernel)`` -> ``(1, 1, kernel)``."""
    return torch.linalg.vector_norm(weight, dim=(0, 1), keepdim=True)
