"""Masked frames and channels of packed frames, for masked prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s3prl_mtl.nn.transfer import to_device
from s3prl_mtl.upstreams.base import Mask


def apply_masks(
    features: Tensor, mask_emb: Tensor, masks: Sequence[Mask | None], lengths: Sequence[int]
) -> Tensor:
    """Replace masked frames by an embedding, then set masked channels to 0.

    Args:
        features: packed frames ``(N, D)``; frames behind the last utterance belong to none.
        mask_emb: ``(D,)``.
        masks: of each utterance, in the order of the rows; None leaves it as it is.
        lengths: frames of each utterance.
    """
    frames = torch.zeros(len(features), 1, dtype=torch.bool)
    for mask, rows in zip(masks, frames[: sum(lengths)].split(list(lengths)), strict=True):
        if mask is not None:
            rows[:, 0] = mask.frames
    hidden = to_device(frames, features.device)
    features = torch.where(hidden, mask_emb.to(features.dtype), features)
    if not any(mask is not None and mask.channels is not None for mask in masks):
        return features
    # The last row is that of the frames of no utterance.
    channels = torch.zeros(len(masks) + 1, features.shape[1], dtype=torch.bool)
    for row, mask in zip(channels, masks, strict=False):
        if mask is not None and mask.channels is not None:
            row.copy_(mask.channels)
    counts = torch.tensor([*lengths, len(features) - sum(lengths)])
    utterance = to_device(torch.arange(len(counts)).repeat_interleave(counts), features.device)
    zeroed = to_device(channels, features.device).index_select(0, utterance)
    return features.masked_fill(zeroed, 0.0)
