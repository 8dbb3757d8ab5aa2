"""HuBERT's convolutional front end, over one packed signal instead of padded waveforms.

Every utterance starts at a multiple of the total stride, so that each convolution meets it in the
same phase as alone. Outputs that straddle two utterances are computed and dropped:

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

# Values of the first convolution's output that are packed into one signal. On a GPU few large
# kernels are best, but some count elements in 32 bits. On a CPU 16 MB takes a fifth to a
# quarter less time than all at once (measured with Base on 24 s of speech).
MAX_ELEMENTS = {"cpu": 2**22, "cuda": 2**29}


class ConvolutionalFrontEnd(nn.Module):
    """Waveforms to packed frames; parameter names are fairseq's ``feature_extractor``.

    ``extractor_mode`` "default" has a GroupNorm with one group a channel after the first
    convolution, whose statistics run over the frames of each utterance alone; "layer_norm" has a
    LayerNorm over channels after every convolution. GELU follows each.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = config
        blocks = []
        width_in = 1
        for index, (width, kernel, stride) in enumerate(config.conv_feature_layers):
            conv = nn.Conv1d(width_in, width, kernel, stride=stride, bias=config.conv_bias)
            nn.init.kaiming_normal_(conv.weight)
            # Position 1 is a dropout of 0 in fairseq; it is kept for the names of the others.
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
        first_stride = self.config.conv_feature_layers[0][2]
        *first_modules, gelu = self.conv_layers[0].children()
        pieces: list[Tensor] = []
        slots = []
        for wav in wavs:
            # The first block runs on each utterance alone because its GroupNorm averages over
            # time. It is cheap: one input channel.
            x = wav[None, None]
            for module in first_modules:
                x = module(x)
            slots.append(math.ceil(len(wav) / total_stride))
            gap = slots[-1] * total_stride // first_stride - x.shape[-1]
            pieces.append(x)
            if gap:
                pieces.append(x.new_zeros(1, x.shape[1], gap))
        x = gelu(torch.cat(pieces, dim=-1))
        for block in list(self.conv_layers)[1:]:
            x = block(x)
        frames = x[0].t()
        result = []
        start = 0
        for wav, slot in zip(wavs, slots, strict=True):
            result.append(frames[start : start + self.config.num_frames(len(wav))])
            start += slot
        return result


class TimeNorm(nn.GroupNorm):
    """GroupNorm computed in float32 at least, given back in the type it came in."""

    def forward(self, x: Tensor) -> Tensor:
        wide = _at_least_float32(x)
        y = F.group_norm(wide, self.num_groups, self.weight.to(wide), self.bias.to(wide), self.eps)
        return y.to(x.dtype)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``(1, C, T)``, computed in float32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        wide = _at_least_float32(x).transpose(1, 2)
        y = F.layer_norm(
            wide, self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps
        )
        return y.transpose(1, 2).to(x.dtype)


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
