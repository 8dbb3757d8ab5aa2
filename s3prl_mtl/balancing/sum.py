"""Equal weights: the update follows the sum of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from s3prl_mtl.balancing.base import Balancer, Heads


class Sum(Balancer):
    """Minimises the sum of the tasks' losses, as s3prl's multi-task branch does by default."""

    def backward(
        self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        if losses:
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()
