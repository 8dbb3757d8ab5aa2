"""From a list of utterances to one padded batch, and back to which of its frames are real."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def pad_features(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stacks utterances of different lengths, filling up the shorter ones with zeros.

    Args:
        features: B tensors (T_i, D).

    Returns:
        The batch (B, max T_i, D), and the frames of each utterance (B,), int64 and on the CPU,
        where packing and slicing need them.

    Raises:
        ValueError: there is no utterance.
    """
    if not features:
        raise ValueError("pad_features needs at least one utterance")
    lengths = torch.tensor([len(utterance) for utterance in features], dtype=torch.long)
    return pad_sequence(list(features), batch_first=True), lengths


def frame_mask(lengths: Tensor, max_length: int, device: torch.device | None = None) -> Tensor:
    """True where a frame belongs to its utterance: (B, max_length), bool.

    Args:
        lengths: frames of each utterance (B,).
        max_length: frames of the padded batch.
        device: where the mask goes; by default where `lengths` lie.
    """
    lengths = lengths.to(device or lengths.device)
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)
