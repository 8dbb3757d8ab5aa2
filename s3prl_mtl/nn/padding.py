"""Padding of utterances into a batch, and the mask of real frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_mtl.nn.transfer import to_device


def pad_features(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack utterances of different lengths, padded with zeros at the end.

    Args:
        features: B tensors (T_i, D).

    Returns:
        The batch (B, max T_i, D), and the lengths in frames (B,), int64 on the CPU, as packing and
        slicing need them.

    Raises:
        ValueError: `features` is empty.
    """
    if not features:
        raise ValueError("pad_features needs at least one utterance")
    lengths = torch.tensor([len(utterance) for utterance in features], dtype=torch.long)
    return pad_sequence(list(features), batch_first=True), lengths


def frame_mask(lengths: Tensor, max_length: int, device: torch.device | None = None) -> Tensor:
    """Mask of real frames: (B, max_length), bool, False in padding.

    Args:
        lengths: frames of each utterance (B,).
        max_length: frames of the padded batch.
        device: device of the mask; default: that of `lengths`.
    """
    lengths = to_device(lengths, device or lengths.device)
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)
