"""An LSTM layer over padded utterances of different lengths, for CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_mtl.nn.padding import frame_mask

FRAME_MULTIPLE = 16
"""Padded lengths are multiples of this: oneDNN prepares, and keeps, a kernel for each length."""


def lstm_over_padded(layer: nn.LSTM, features: Tensor, lengths: Tensor) -> Tensor:
    """Run an LSTM over each utterance's own frames, as on a packed sequence.

    On a CPU torch has a fused kernel for padded sequences; packed ones it computes time step by
    time step, and the backward pass takes time that grows with the square of the length (4.5
    times as long in all, for 8 utterances of 1 to 2 s and 96 units in both directions). The
    backward direction reads the utterances reversed, so that their padding comes last in it too.

    Args:
        layer: an LSTM of one layer, batch first.
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
    """The frames of each utterance (B, T, D) in reverse, padding where it was."""
    batch, frames, width = features.shape
    time = torch.arange(frames).expand(batch, -1)
    source = torch.where(frame_mask(lengths, frames), lengths.unsqueeze(1) - 1 - time, time)
    rows = (source + frames * torch.arange(batch).unsqueeze(1)).flatten()
    return features.reshape(-1, width).index_select(0, rows).view(batch, frames, width)
