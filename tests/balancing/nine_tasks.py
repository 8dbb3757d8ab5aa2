"""A small network with nine losses, and steps of a balancer on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from s3prl_mtl.balancing import Balancer

NINE = [f"task{number}" for number in range(9)]


class Network(nn.Module):
    """A shared layer and a head for each task, with the same weights in each instance."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(6, 5)
        self.heads = nn.ModuleDict({task: nn.Linear(5, 1) for task in NINE})

    def losses(
        self, step: int, tasks: Sequence[str] = NINE, own: slice = slice(None)
    ) -> dict[str, Tensor]:
        """The mean losses of a step, which has eight utterances; the summands of some of them."""
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, 6, generator=generator)
        targets = torch.randn(9, 8, 1, generator=generator)
        hidden = self.shared(inputs).tanh()
        return {
            task: (self.heads[task](hidden) - targets[NINE.index(task)])[own].square().sum() / 8
            for task in tasks
        }

    def jacobian(self, step: int, tasks: Sequence[str] = NINE) -> Tensor:
        """The gradients of the shared layer, (tasks, values)."""
        losses = self.losses(step, tasks).values()
        grads = [
            torch.autograd.grad(loss, list(self.shared.parameters()), retain_graph=True)
            for loss in losses
        ]
        return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in grads])

    def shared_gradient(self) -> Tensor:
        return torch.cat([p.grad.reshape(-1) for p in self.shared.parameters()])


def take(balancer: Balancer, step: int, tasks: Sequence[str] = NINE) -> Network:
    """The network after a step of a balancer: one task a micro-batch, an attempt abandoned."""
    network = Network()
    shared = list(network.shared.parameters())
    heads = {task: list(head.parameters()) for task, head in network.heads.items()}
    balancer.begin_step()
    balancer.backward(network.losses(step, tasks[:2]), shared, heads)
    network.zero_grad(set_to_none=True)
    balancer.begin_step()
    passes = [[task] for task in tasks] if balancer.one_task_at_a_time else [tasks]
    means = {}
    for own in passes:
        losses = network.losses(step, own)
        balancer.backward(losses, shared, heads)
        means |= {task: loss.item() for task, loss in losses.items()}
    balancer.combine(means, shared, heads)
    return network
