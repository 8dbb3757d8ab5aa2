"""Weighted sums of the losses: given weights, and weights that are learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_mtl.balancing.base import Balancer, Heads
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.nn import to_device


class WeightedLosses(Balancer):
    """Minimises a weighted sum of the losses, with weights that the losses of a step do not change.

    A subclass implements :meth:`weights`. The metrics are the weights, as `weight_<task>`.
    """

    def weights(self) -> Tensor:
        """The weight of each task in this step, (tasks,), without gradient."""
        raise NotImplementedError

    def backward(
        self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        if losses:
            # A list of indices would be copied to the GPU, and waited for.
            weights = self.weights()
            chosen = torch.stack([weights[self.tasks.index(task)] for task in losses])
            values = torch.stack([loss.float() for loss in losses.values()])
            (to_device(chosen, values.device) * values).sum().backward()

    def metrics(self) -> dict[str, float]:
        return by_task("weight", self.tasks, self.weights())


class Fixed(WeightedLosses):
    """Weighted sum of the losses; the options are weights by task, 1 where there is none.

    Args:
        tasks: of the run.
        weights: by task, for example ``asr=1, ks=0.3``.
    """

    def __init__(self, tasks: Sequence[str], **weights: Any) -> None:
        super().__init__(tasks)
        for task, weight in weights.items():
            if task not in tasks:
                raise UserError(
                    f"The run has no task {task!r} to weight.",
                    where=f"balancer.{task}",
                    fix=nearest(task, list(tasks)),
                    code="unknown-name",
                )
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not is_number or not 0 <= weight < math.inf:
                raise UserError(
                    f"The weight of {task} must be a number of at least 0, not {weight!r}.",
                    where=f"balancer.{task}",
                    fix=f"For example: fixed:{task}=0.5.",
                    code="invalid-value",
                )
        if not any(weights.get(task, 1.0) for task in tasks):
            raise UserError(
                "The weights of all tasks are 0: nothing would be trained.",
                where="balancer fixed",
                fix="Give a task a weight above 0.",
                code="invalid-value",
            )
        values = [float(weights.get(task, 1.0)) for task in tasks]
        self.register_buffer("_weights", torch.tensor(values), persistent=False)

    def weights(self) -> Tensor:
        return self.get_buffer("_weights")


class Uncertainty(WeightedLosses):
    """Learned weights: minimises the sum of ``loss / exp(log_sigma)^2 + log_sigma``.

    `log_sigma` is a number for each task, 0 at the start, learned with the heads. The formula is
    that of `--auto_loss_weights` of s3prl's multi-task branch, after Kendall, Gal & Cipolla,
    Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018. In the branch the sigmas stay
    1 on a GPU, since its optimizer does not get them.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.log_sigma = nn.Parameter(torch.zeros(len(tasks)))

    def weights(self) -> Tensor:
        return (-2 * self.log_sigma.detach()).exp()

    def combine(
        self, losses: Mapping[str, float], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        if not losses:
            return
        log_sigma = torch.stack([self.log_sigma[self.tasks.index(task)] for task in losses])
        means = to_device(torch.tensor(list(losses.values())), log_sigma.device)
        ((-2 * log_sigma).exp() * means + log_sigma).sum().backward()

    def metrics(self) -> dict[str, float]:
        return super().metrics() | by_task("sigma", self.tasks, self.log_sigma.detach().exp())


def by_task(name: str, tasks: Sequence[str], values: Tensor) -> dict[str, float]:
    """Metrics of values by task, such as ``{"weight_asr": 0.7}``."""
    return {f"{name}_{task}": v for task, v in zip(tasks, values.tolist(), strict=True)}
