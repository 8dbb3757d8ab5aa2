"""Dropout that draws sixteen bits a value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 2**16


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zero each value with a probability, and scale the others so that the mean stays.

    On a CPU torch draws a number for every value, which takes longer than many of the products
    between which dropout stands. Here four values share the 64 bits of one draw (0.3 of the time,
    forward), so that the probability is rounded to a multiple of 1 / 65536.

    Args:
        x: (..., D).
        probability: of a zero, in [0, 1).
        training: False returns `x` itself.
    """
    if not training or probability == 0 or x.device.type != "cpu":
        return F.dropout(x, probability, training)
    zeroed = round(probability * LEVELS)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = levels >= zeroed - LEVELS // 2
    return x * (kept.to(x.dtype) * (LEVELS / (LEVELS - zeroed)))
