"""Balancers of each kind, written from their definitions, to test the interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from s3prl_mtl.balancing import Balancer, GradientBalancer
from s3prl_mtl.balancing.base import Heads


class FixedWeights(Balancer):
    """Minimises a weighted sum of the losses; the first task has the weight 1, the next 2, ..."""

    def backward(
        self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        if losses:
            weighted = [(1 + self.tasks.index(task)) * loss for task, loss in losses.items()]
            torch.stack(weighted).sum().backward()


class LearnedWeights(Balancer):
    """Minimises the sum of exp(-s) * loss + s with a learned s for each task.

    Kendall, Gal & Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.log_variances = nn.Parameter(torch.zeros(len(tasks)))

    def backward(
        self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        if losses:
            weights = (-self.log_variances.detach()).exp()
            weighted = [weights[self.tasks.index(task)] * loss for task, loss in losses.items()]
            torch.stack(weighted).sum().backward()

    def combine(
        self, losses: Mapping[str, float], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        present = [self.tasks.index(task) for task in losses]
        variances = self.log_variances[present]
        means = torch.tensor(list(losses.values()), device=variances.device)
        ((-variances).exp() * means + variances).sum().backward()

    def metrics(self) -> dict[str, float]:
        weights = (-self.log_variances.detach()).exp().tolist()
        return {f"weight_{task}": w for task, w in zip(self.tasks, weights, strict=True)}


class PCGrad(GradientBalancer):
    """Sums the gradients, each without its components against those of the other tasks.

    Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, algorithm 1, with the other
    tasks in their order instead of a random one.
    """

    def aggregate(self, gradients: Tensor, tasks: Sequence[str]) -> Tensor:
        return pcgrad(list(gradients))


def pcgrad(gradients: Sequence[Tensor]) -> Tensor:
    projected = []
    for i, own in enumerate(gradients):
        gradient = own.clone()
        for j, other in enumerate(gradients):
            product = gradient @ other
            if i != j and product < 0:
                gradient -= product / (other @ other) * other
        projected.append(gradient)
    return torch.stack(projected).sum(dim=0)
