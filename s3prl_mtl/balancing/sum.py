"""Equal weights: the update follows the sum of the losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def sum_of_losses(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of the tasks' losses, a scalar; the multi-task branch of s3prl uses it by default.

    Args:
        losses: a scalar for each task.
    """
    return torch.stack([loss.float() for loss in losses.values()]).sum()
