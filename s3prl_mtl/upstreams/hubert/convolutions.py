"""HuBERT's convolutional front end, over one packed signal instead of padded waveforms.

Frames are rows, channels are columns. A convolution is a matrix product on a view of the rows, so
no operation plans or compiles a kernel for the length of an utterance. Every utterance starts at a
multiple of the total stride, so that strides are aligned as for a single utterance. Outputs that
straddle two utterances are computed and dropped:

    signal     |aaaaaaaaaaaa....|bbbbbbb.|cccccc..|      . = gap, less than one total stride
    frames      a   a   a   x    b   x    c   x          x = dropped
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from s3prl_mtl.nn.transfer import to_device
from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.layers import layer_norm
from s3prl_mtl.upstreams.hubert.segments import on_gpu, rounded_length

# Maximum number of output values of the first convolution per packed signal. On a GPU few large
# kernels are best, but some count elements in 32 bits. On a CPU 16 MB takes 20 to 25 % less time
# than no limit (measured with Base on 24 s of speech).
MAX_ELEMENTS = {"cpu": 2**22, "cuda": 2**29}

# Kernel positions are padded to a multiple: a GPU's matrix units need aligned rows.
ALIGNMENT = {"cpu": 1, "cuda": 8}

# Of the rows of the matrix products of a GPU, 1.6 % of which are unused on average.
LENGTHS_PER_OCTAVE = 32

# Largest share of a GPU's memory for the activations of the front end; if a batch needs more, they
# are computed again in the backward pass.
MAX_KEPT = 0.1


class ConvolutionalFrontEnd(nn.Module):
    """Waveforms to packed frames; parameter names are fairseq's ``feature_extractor``.

    ``extractor_mode`` "default" has a GroupNorm with one group per channel after the first
    convolution, with statistics over the frames of each utterance; "layer_norm" has a LayerNorm
    over channels after every convolution. GELU follows each.

    Attributes:
        recompute: compute the activations again in the backward pass instead of keeping them; None
            for on a GPU only, if they would take more than a tenth of its memory.
    """

    recompute: bool | None = None

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = config
        blocks = []
        width_in = 1
        for index, (width, kernel, stride) in enumerate(config.conv_feature_layers):
            conv = nn.Conv1d(width_in, width, kernel, stride=stride, bias=config.conv_bias)
            nn.init.kaiming_normal_(conv.weight)
            # Position 1 is a dropout of 0 in fairseq; kept for the parameter names of the others.
            if config.extractor_mode == "layer_norm":
                norm = nn.Sequential(nn.Identity(), ChannelNorm(width), nn.Identity())
                blocks.append(nn.Sequential(conv, nn.Identity(), norm, nn.GELU()))
            elif index == 0:
                blocks.append(nn.Sequential(conv, nn.Identity(), TimeNorm(width, width), nn.GELU()))
            else:
                blocks.append(nn.Sequential(conv, nn.Identity(), nn.GELU()))
            width_in = width
        self.conv_layers = nn.ModuleList(blocks)

    def forward(self, wavs: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Waveforms ``(samples_i,)`` -> packed frames ``(N, C)`` of a dtype, in their order.

        On a GPU, N is a rounded length: frames behind the last utterance belong to none.
        """
        device = wavs[0].device.type
        width, _, stride = self.config.conv_feature_layers[0]
        budget = MAX_ELEMENTS.get(device, MAX_ELEMENTS["cuda"]) * stride // width
        parts: list[list[Tensor]] = [[]]
        for wav in wavs:
            if parts[-1] and sum(map(len, parts[-1])) + len(wav) > budget:
                parts.append([])
            parts[-1].append(wav)
        total = sum(self.config.num_frames(len(wav)) for wav in wavs)
        unused = rounded_length(total, LENGTHS_PER_OCTAVE) - total if on_gpu(wavs[0]) else 0
        actions = [
            partial(self._frames, part, dtype, unused if part is parts[-1] else 0) for part in parts
        ]
        if torch.is_grad_enabled() and self._recompute(wavs, dtype):
            parameters = list(self.parameters())
            frames = [_Recomputed.apply(action, *parameters) for action in actions]
        else:
            frames = [action() for action in actions]
        return torch.cat(frames) if len(frames) > 1 else frames[0]

    def _recompute(self, wavs: list[Tensor], dtype: torch.dtype) -> bool:
        if self.recompute is not None or not on_gpu(wavs[0]):
            return bool(self.recompute)
        # Before and after each activation.
        samples, stride, values = sum(map(len, wavs)), 1, 0
        for width, _, step in self.config.conv_feature_layers:
            stride *= step
            values += 2 * width * samples // stride
        memory = torch.cuda.get_device_properties(wavs[0].device).total_memory
        return values * dtype.itemsize > MAX_KEPT * memory

    def _frames(self, wavs: list[Tensor], dtype: torch.dtype, unused: int) -> Tensor:
        """``(sum T + unused, C)`` of some waveforms."""
        total_stride = self.config.total_stride
        slots = [math.ceil(len(wav) / total_stride) for wav in wavs]
        if on_gpu(wavs[0]):
            slots[-1] += rounded_length(sum(slots), LENGTHS_PER_OCTAVE) - sum(slots)
        x = self._first_block(wavs, slots, dtype)
        for index in range(1, len(self.conv_layers)):
            conv, norm, gelu = self._parts(index)
            x = strided_convolution(x, conv.weight, conv.bias, conv.stride[0])
            x = gelu(layer_norm(x, norm) if isinstance(norm, ChannelNorm) else x)
        frames = [self.config.num_frames(len(wav)) for wav in wavs]
        if len(wavs) == 1 and not unused:
            return x[: frames[0]]
        dropped = torch.tensor(starts(slots)) - torch.tensor(starts(frames))
        kept = torch.arange(sum(frames)) + torch.repeat_interleave(dropped, torch.tensor(frames))
        return x.index_select(0, to_device(F.pad(kept, (0, unused), value=len(x) - 1), x.device))

    def _first_block(self, wavs: list[Tensor], slots: list[int], dtype: torch.dtype) -> Tensor:
        """The first convolution, its norm and activation: ``(N, C)``, utterances in their slots."""
        total_stride = self.config.total_stride
        _, kernel, stride = self.config.conv_feature_layers[0]
        conv, norm, gelu = self._parts(0)
        pieces = []
        for wav, slot in zip(wavs, slots, strict=True):
            gap = slot * total_stride - len(wav)
            pieces += [wav, wav.new_zeros(gap)] if gap else [wav]
        pieces.append(wavs[0].new_zeros(max(0, kernel - stride)))
        in_slot = total_stride // stride
        windows = torch.cat(pieces).unfold(0, kernel, stride)[: sum(slots) * in_slot]
        weight = conv.weight.flatten(1)
        padding = -kernel % ALIGNMENT.get(windows.device.type, ALIGNMENT["cuda"])
        if not isinstance(norm, TimeNorm):
            x = F.linear(
                F.pad(windows, (0, padding)).to(dtype),
                F.pad(weight, (0, padding)).to(dtype),
                None if conv.bias is None else conv.bias.to(dtype),
            )
            return gelu(x if norm is None else layer_norm(x, norm))
        counts = [(len(wav) - kernel) // stride + 1 for wav in wavs]
        statistics = statistics_by_slot if on_gpu(windows) else statistics_by_utterance
        centred, covariance = statistics(windows, slots, in_slot, counts)
        # The convolution is linear in the window: its variance over time needs no output. Nothing
        # depends on a bias before the norm; its gradient is 0, not absent.
        variance = ((weight @ covariance) * weight).sum(-1)
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        shift = norm.bias if conv.bias is None else norm.bias + 0 * conv.bias
        x = SegmentedLinear.apply(
            F.pad(centred, (0, padding)).to(dtype),
            F.pad(weight * scale[..., None], (0, padding)).to(dtype),
            shift.to(dtype),
            [in_slot * start for start in starts([*slots, 0])],
        )
        return gelu(x)

    def _parts(self, index: int) -> tuple[nn.Conv1d, TimeNorm | ChannelNorm | None, nn.GELU]:
        """Convolution, norm (or None) and activation of a block."""
        modules: list[Any] = list(self.conv_layers[index].modules())
        norms = [module for module in modules if isinstance(module, TimeNorm | ChannelNorm)]
        conv = next(module for module in modules if isinstance(module, nn.Conv1d))
        return conv, norms[0] if norms else None, modules[-1]


def starts(lengths: list[int]) -> list[int]:
    """The start of each part of a sequence."""
    return list(accumulate(lengths[:-1], initial=0))


@torch.no_grad()
def statistics_by_utterance(
    windows: Tensor, slots: list[int], in_slot: int, counts: list[int]
) -> tuple[Tensor, Tensor]:
    """Centre the windows of each utterance, and their covariance.

    Args:
        windows: ``(N, kernel)``.
        slots: of each utterance, one after the other.
        in_slot: windows of a slot.
        counts: windows of each utterance; those behind them belong to no frame.

    Returns:
        the windows minus the mean of their utterance, zero between utterances, ``(N, kernel)``;
        the covariance of each utterance, ``(utterances, kernel, kernel)``.
    """
    centred = windows.new_zeros(windows.shape)
    covariances = []
    for slot, count in zip(starts(slots), counts, strict=True):
        own = slice(slot * in_slot, slot * in_slot + count)
        # Double precision: an offset may be large against the signal.
        mean = windows[own].mean(0, dtype=torch.float64).to(windows.dtype)
        rows = torch.sub(windows[own], mean, out=centred[own])
        covariances.append(rows.t() @ rows / count)
    return centred, torch.stack(covariances)


@torch.no_grad()
def statistics_by_slot(
    windows: Tensor, slots: list[int], in_slot: int, counts: list[int]
) -> tuple[Tensor, Tensor]:
    """`statistics_by_utterance` in few kernels, for a GPU: sums of slots, then of utterances."""
    device = windows.device
    owner = torch.repeat_interleave(torch.tensor(slots))
    in_utterance = torch.arange(len(owner)) - torch.tensor(starts(slots))[owner]
    used = (torch.tensor(counts)[owner] - in_utterance * in_slot).clamp(0, in_slot)
    owner, used = to_device(torch.stack([owner, used]), device)
    unused = (torch.arange(in_slot, device=device) >= used[:, None])[..., None]
    share = to_device(1 / torch.tensor(counts, dtype=torch.float64), device)

    def mean(sums: Tensor) -> Tensor:
        """Sums over slots ``(slots, ...)`` -> the mean over the windows of each utterance."""
        totals = sums.new_zeros(len(slots), *sums.shape[1:]).index_add_(0, owner, sums)
        return (totals * share.view(-1, *[1] * (sums.dim() - 1))).to(windows.dtype)

    by_slot = windows.unflatten(0, (-1, in_slot))
    centre = mean(by_slot.masked_fill(unused, 0.0).sum(1, dtype=torch.float64))
    centred = (by_slot - centre[owner][:, None]).masked_fill_(unused, 0.0)
    rows = centred.double()
    return centred.flatten(0, 1), mean(rows.transpose(1, 2) @ rows)


class _Recomputed(torch.autograd.Function):
    """A function of parameters whose activations are computed again in the backward pass.

    Less work for Python than torch's ``checkpoint``, which also serves random functions.
    """

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Tensor], *parameters: Tensor) -> Tensor:
        ctx.compute, ctx.parameters = compute, parameters
        return compute()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        trained = [p for p, wanted in zip(ctx.parameters, needed, strict=True) if wanted]
        with torch.enable_grad(), torch.autocast(gradients[0].device.type, enabled=False):
            found = iter(torch.autograd.grad(ctx.compute(), trained, gradients[0]))
        return None, *(next(found) if wanted else None for wanted in needed)


class SegmentedLinear(torch.autograd.Function):
    """A linear layer with weights of its own for each segment of the rows, and one bias."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, bias: Tensor, bounds: list[int]) -> Tensor:
        """``(N, K)``, ``(segments, C, K)``, ``(C,)`` -> ``(N, C)``; bounds start each segment."""
        ctx.save_for_backward(rows)
        ctx.bounds = bounds
        out = rows.new_empty(len(rows), len(bias))
        for weight, (start, end) in zip(weights, pairwise(bounds), strict=True):
            torch.addmm(bias, rows[start:end], weight.t(), out=out[start:end])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, Tensor, None]:
        (rows,), gradient = ctx.saved_tensors, gradients[0]
        parts = [gradient[a:b].t() @ rows[a:b] for a, b in pairwise(ctx.bounds)]
        return None, torch.stack(parts), gradient.sum(0), None


def strided_convolution(rows: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolution over the first dimension, one product per ``stride`` kernel positions.

    With kernel 3 and stride 2, output j is ``[row 2j, row 2j + 1] @ W01 + row 2j+2 @ W2``.

    Args:
        rows: ``(N, C)``, N a multiple of the stride.
        weight: ``(C_out, C, kernel)``.
        bias: ``(C_out,)`` or None.
        stride: rows from one output to the next.

    Returns:
        ``(N / stride, C_out)``. Outputs whose kernel goes beyond the last row are incomplete.
    """
    # Kernel positions side by side, like the rows of a block.
    matrix = weight.transpose(1, 2).flatten(1).to(rows.dtype)
    bias = None if bias is None else bias.to(rows.dtype)
    out: Tensor = _BlockProducts.apply(rows, matrix, bias, stride * rows.shape[1])
    return out


class _BlockProducts(torch.autograd.Function):
    """The sum of products of a strided convolution, accumulated in place."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, bias: Tensor | None, block: int) -> Tensor:
        blocks = rows.reshape(-1, block)
        first, *later = matrix.split(block, dim=1)
        out = F.linear(blocks[:, : first.shape[1]], first, bias)
        for behind, part in enumerate(later, 1):
            if behind < len(out):
                out[:-behind].addmm_(blocks[behind:, : part.shape[1]], part.t())
        ctx.save_for_backward(blocks, matrix)
        ctx.channels, ctx.with_bias = rows.shape[1], bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *gradients: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (blocks, matrix), gradient = ctx.saved_tensors, gradients[0]
        block = blocks.shape[1]
        first, *later = matrix.split(block, dim=1)
        to_rows = to_matrix = to_bias = None
        if ctx.needs_input_grad[0]:
            width = first.shape[1]
            if width == block:
                to_blocks = gradient @ first
            else:  # A stride beyond the kernel.
                to_blocks = torch.zeros_like(blocks)
                to_blocks[:, :width] = gradient @ first
            for behind, part in enumerate(later, 1):
                if behind < len(gradient):
                    to_blocks[behind:, : part.shape[1]].addmm_(gradient[:-behind], part)
            to_rows = to_blocks.view(-1, ctx.channels)
        if ctx.needs_input_grad[1]:
            parts = [gradient.t() @ blocks[:, : first.shape[1]]]
            for behind, part in enumerate(later, 1):
                rest = blocks[behind:, : part.shape[1]]
                parts.append(gradient[: len(rest)].t() @ rest)
            to_matrix = torch.cat(parts, dim=1)
        if ctx.with_bias:
            to_bias = gradient.sum(0)
        return to_rows, to_matrix, to_bias, None


class TimeNorm(nn.GroupNorm):
    """GroupNorm with one group per channel: each channel is normalised over time."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over channels of ``(1, C, T)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant (fairseq's ``feature_grad_mult``)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None
