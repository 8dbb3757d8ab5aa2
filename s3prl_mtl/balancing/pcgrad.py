"""PCGrad: gradients without their components against those of other tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_mtl.balancing.base import GradientBalancer, Heads
from s3prl_mtl.data.sampling import derived_seed


class PCGrad(GradientBalancer):
    """Gradients without their components against those of the other tasks.

    Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, algorithm 1: the gradient of
    each task is projected onto the normal plane of that of each other task that it has a negative
    inner product with, in random order; the update is the sum of the projected gradients.

    Args:
        tasks: of the run.
        per_parameter: project each parameter tensor on its own and average over the tasks, as
            `--pcgrad` of s3prl's multi-task branch does.
        seed: of the random orders.
    """

    def __init__(self, tasks: Sequence[str], per_parameter: bool = False, seed: int = 0) -> None:
        super().__init__(tasks)
        self.per_parameter = per_parameter
        self.seed = seed
        self.step = 0

    def aggregate(self, gradients: Tensor, tasks: Sequence[str]) -> Tensor:
        if not self.per_parameter:
            return self._weights(self.gramian[None])[0] @ gradients
        parts = gradients.split(self.sizes, dim=1)
        weights = self._weights(torch.stack([part @ part.T for part in parts])) / len(tasks)
        return torch.cat([row @ part for row, part in zip(weights, parts, strict=True)])

    def combine(
        self, losses: Mapping[str, float], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        super().combine(losses, shared, heads)
        self.step += 1

    def get_extra_state(self) -> dict[str, Any]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def _weights(self, gramians: Tensor) -> Tensor:
        """The weights of the gradients in the sum of the projected ones, (tensors, tasks).

        Args:
            gramians: of each parameter tensor, (tensors, tasks, tasks).
        """
        # Draws on a CPU are the same on all devices; the matrices are copied once.
        generator = torch.Generator().manual_seed(derived_seed("pcgrad", self.seed, self.step))
        orders = torch.rand(gramians.shape, generator=generator).argsort(dim=-1)
        return projection_weights(gramians.double().cpu(), orders).to(gramians)


def projection_weights(gramians: Tensor, orders: Tensor) -> Tensor:
    """The weights of gradients in the sum of their projections, for several matrices at once.

    A projected gradient is a combination of the gradients, so inner products with it follow from
    the Gramian and its coefficients.

    Args:
        gramians: inner products of the gradients, (matrices, tasks, tasks).
        orders: for each matrix and task the order in which it meets the others, (matrices, tasks,
            tasks). The task itself is passed over.

    Returns:
        (matrices, tasks).
    """
    count, tasks, _ = gramians.shape
    norms = gramians.diagonal(dim1=1, dim2=2)
    coefficients = torch.eye(tasks, dtype=gramians.dtype).repeat(count, 1, 1)
    for other in orders.unbind(dim=-1):
        rows = gramians.gather(1, other[..., None].expand_as(gramians))
        products = (rows * coefficients).sum(dim=-1)
        against = (products < 0) & (other != torch.arange(tasks))
        shares = torch.where(against, products / norms.gather(1, other), 0)
        coefficients.scatter_add_(2, other[..., None], -shares[..., None])
    return coefficients.sum(dim=1)
