"""LSTM layer over padded utterances of different lengths, for CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_mtl.nn.padding import frame_mask

FRAME_MULTIPLE = 16
"""Padded lengths are multiples of this: oneDNN builds and caches one kernel per length."""


def lstm_over_padded(layer: nn.LSTM, features: Tensor, lengths: Tensor) -> Tensor:
    """LSTM over the frames of each utterance, equal to the LSTM of a packed sequence.

    On a CPU, torch has a fused kernel for padded sequences. Packed sequences run step by step,
    and their backward pass is quadratic in the length (4.5 times as long in total for 8 utterances
    of 1 to 2 s and 96 units in both directions). The backward direction reads the utterances
    reversed, so padding comes last in both directions.

    Args:
        layer: a one-layer, batch-first LSTM.
        features: (B, T, input_dim), T the longest length.
        lengths: frames of each utterance (B,), on the CPU.

    Returns:
        (B, T, directions * hidden_size), zeros in padding.
    """
    frames = features.shape[1]
    features = F.pad(features, (0, 0, 0, -frames % FRAME_MULTIPLE))
    start = features.new_zeros(1, len(features), layer.hidden_size)
    outputs = []
    for suffix in ("_l0", "_l0_reverse")[: 1 + layer.bidirectional]:
        reverse = suffix != "_l0"
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if layer.bias else 2]
        hidden, *_ = torch.lstm(
            _reversed(features, lengths) if reverse else features,
            (start, start),
            [getattr(layer, kind + suffix) for kind in kinds],
            has_biases=layer.bias,
            num_layers=1,
            dropout=0.0,
            train=layer.training,
            bidirectional=False,
            batch_first=True,
        )
        outputs.append(_reversed(hidden, lengths) if reverse else hidden)
    hidden = torch.cat(outputs, dim=-1)[:, :frames]
    return hidden.masked_fill(~frame_mask(lengths, frames).unsqueeze(-1), 0.0)


def _reversed(features: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the frames of each utterance (B, T, D); padding stays in place."""
    batch, frames, width = features.shape
    time = torch.arange(frames).expand(batch, -1)
    source = torch.where(frame_mask(lengths, frames), lengths.unsqueeze(1) - 1 - time, time)
    rows = (source + frames * torch.arange(batch).unsqueeze(1)).flatten()
    return features.reshape(-1, width).index_select(0, rows).view(batch, frames, width)
