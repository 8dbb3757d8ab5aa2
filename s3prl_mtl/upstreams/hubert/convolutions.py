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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_mtl.upstreams.hubert.config import HubertConfig

# Maximum number of output values of the first convolution per packed signal. On a GPU few large
# kernels are best, but some count elements in 32 bits. On a CPU 16 MB takes 20 to 25 % less time
# than no limit (measured with Base on 24 s of speech).
MAX_ELEMENTS = {"cpu": 2**22, "cuda": 2**29}


class ConvolutionalFrontEnd(nn.Module):
    """Waveforms to packed frames; parameter names are fairseq's ``feature_extractor``.

    ``extractor_mode`` "default" has a GroupNorm with one group per channel after the first
    convolution, with statistics over the frames of each utterance; "layer_norm" has a LayerNorm
    over channels after every convolution. GELU follows each.
    """

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

    def forward(self, wavs: list[Tensor]) -> Tensor:
        """Waveforms ``(samples_i,)`` -> packed frames ``(sum T, C)``, in the same order."""
        width, _, stride = self.config.conv_feature_layers[0]
        budget = MAX_ELEMENTS.get(wavs[0].device.type, MAX_ELEMENTS["cuda"]) * stride // width
        frames: list[Tensor] = []
        part: list[Tensor] = []
        for wav in wavs:
            if part and sum(map(len, part)) + len(wav) > budget:
                frames.extend(self._frames(part))
                part = []
            part.append(wav)
        frames.extend(self._frames(part))
        return torch.cat(frames)

    def _frames(self, wavs: list[Tensor]) -> list[Tensor]:
        """``(T_i, C)`` of each waveform."""
        total_stride = self.config.total_stride
        width, kernel, stride = self.config.conv_feature_layers[0]
        conv, norm, gelu = self._parts(0)
        weight = conv.weight.flatten(1)
        pieces: list[Tensor] = []
        slots = []
        for wav in wavs:
            # The first block runs on one utterance at a time: its GroupNorm averages over time,
            # and one utterance fits into the processor's cache.
            x = F.linear(wav.unfold(0, kernel, stride), weight, conv.bias)
            pieces.append(x if norm is None else norm.over_rows(x))
            slots.append(math.ceil(len(wav) / total_stride))
            gap = slots[-1] * total_stride // stride - len(x)
            if gap:
                pieces.append(x.new_zeros(gap, width))
        x = gelu(torch.cat(pieces))
        for index in range(1, len(self.conv_layers)):
            conv, norm, gelu = self._parts(index)
            x = strided_convolution(x, conv.weight, conv.bias, conv.stride[0])
            x = gelu(x if norm is None else norm.over_rows(x))
        result = []
        start = 0
        for wav, slot in zip(wavs, slots, strict=True):
            result.append(x[start : start + self.config.num_frames(len(wav))])
            start += slot
        return result

    def _parts(self, index: int) -> tuple[nn.Conv1d, TimeNorm | ChannelNorm | None, nn.GELU]:
        """Convolution, norm (or None) and activation of a block."""
        modules: list[Any] = list(self.conv_layers[index].modules())
        norms = [module for module in modules if isinstance(module, TimeNorm | ChannelNorm)]
        conv = next(module for module in modules if isinstance(module, nn.Conv1d))
        return conv, norms[0] if norms else None, modules[-1]


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
    channels = weight.shape[1]
    blocks = rows.reshape(-1, stride * channels)
    # Kernel positions side by side, like the rows of a block.
    by_block = weight.transpose(1, 2).flatten(1).split(stride * channels, dim=1)
    out = F.linear(blocks[:, : by_block[0].shape[1]], by_block[0], bias)
    for behind, part in enumerate(by_block[1:], 1):
        later = F.linear(blocks[behind:, : part.shape[1]], part)
        out = out + F.pad(later, (0, 0, 0, behind))
    return out


class TimeNorm(nn.GroupNorm):
    """GroupNorm with one group per channel: each channel is normalised over time."""

    def over_rows(self, x: Tensor) -> Tensor:
        """Normalise ``(T, C)`` of one utterance in at least float32; the dtype is kept."""
        wide = _at_least_float32(x)
        # Batch norm of a single image reads rows in place; group norm would copy them.
        image = wide[None, None].permute(0, 3, 1, 2)
        y = F.batch_norm(
            image,
            None,
            None,
            self.weight.to(wide),
            self.bias.to(wide),
            training=True,
            eps=self.eps,
        )
        return y[0, :, 0].t().to(x.dtype)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over channels, computed in at least float32; the dtype is kept."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(1, C, T)``."""
        return self.over_rows(x.transpose(1, 2)).transpose(1, 2)

    def over_rows(self, x: Tensor) -> Tensor:
        """Normalise ``(T, C)``."""
        wide = _at_least_float32(x)
        y = F.layer_norm(
            wide, self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps
        )
        return y.to(x.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant (fairseq's ``feature_grad_mult``)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None
