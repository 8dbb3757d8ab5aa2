"""Dropout from 16 random bits per value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 2**16


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zero each value with the given probability and scale the others to keep the mean.

    On a CPU, torch draws one random number per value. Here four values share one 64-bit draw (0.3
    of the time of a forward pass), so the probability is rounded to a multiple of 1 / 65536.

    Args:
        x: (..., D).
        probability: probability of a zero, in [0, 1).
        training: if False, return `x` itself.

    Returns:
        (..., D).
    """
    if not training or probability == 0 or x.device.type != "cpu":
        return F.dropout(x, probability, training)
    zeroed = round(probability * LEVELS)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = levels >= zeroed - LEVELS // 2
    return x * (kept.to(x.dtype) * (LEVELS / (LEVELS - zeroed)))
