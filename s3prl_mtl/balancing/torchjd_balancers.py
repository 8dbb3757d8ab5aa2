"""Methods of torchjd as balancers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchjd.aggregation import WeightedAggregator

from s3prl_mtl.balancing.base import Balancer, GradientBalancer, Heads
from s3prl_mtl.balancing.torchjd_methods import DEFAULT_EPOCH_STEPS, EPOCH_STEPS, Method
from s3prl_mtl.balancing.torchjd_state import restore_state, state_of
from s3prl_mtl.balancing.weighted import WeightedLosses, by_task
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.errors import UserError
from s3prl_mtl.nn import to_device

logger = logging.getLogger(__name__)


def torchjd_balancer(
    method: Method,
    tasks: Sequence[str],
    options: Mapping[str, Any],
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Balancer:
    """The balancer for a method of torchjd.

    Args:
        method: of :func:`torchjd_methods`.
        tasks: of the run.
        options: of the method.
        seed: of its random draws.
        device: of its state.

    Raises:
        UserError: as `Method.build` and `Method.check_tasks`.
    """
    method.check_tasks(tasks, options)
    if method.level == "gradient":
        return _Aggregated(_Held(method, tasks, options, seed, torch.device(device)))
    # The losses of a step are on the CPU.
    held = _Held(method, tasks, options, seed, torch.device("cpu"))
    return _ScalarizedGradients(held) if method.keeps_gradients else _Scalarized(held)


def check_steps(balancer: Balancer, steps: Sequence[Sequence[str]], rule: str) -> None:
    """As `factory.check_steps`, for methods of torchjd; others pass.

    Raises:
        UserError: the method needs every task, or more tasks than some steps have.
    """
    if not isinstance(balancer, _Aggregated | _Scalarized | _ScalarizedGradients):
        return
    method, tasks, fewest = balancer.held.method, balancer.tasks, min(steps, key=len)
    never = [task for task in tasks if not any(task in own for own in steps)]
    what, fix = "", "Use --sampling all, or another balancer such as uncertainty."
    if method.compares_tasks:
        what = f"{method.name} learns only in steps with every task."
    elif EPOCH_STEPS in method.options and never:
        what = f"{method.name} needs losses of every task, also of {', '.join(never)}."
        fix = "Give each task a weight above 0."
    else:
        try:
            balancer.held.of(fewest)
        except UserError as cause:
            what, fix = cause.what, cause.fix or fix
    if what:
        raise UserError(
            f"{what} With the sampling {rule!r} there are steps with {', '.join(fewest)} only.",
            where="balancer and runner.sampling",
            fix=fix,
            code="conflicting-options",
        )


class _Held:
    """An object of torchjd with its state. Not a submodule: torchjd's state dicts are incomplete.

    For a step without some of the tasks, `of` makes an object of the others, without state.
    """

    def __init__(
        self,
        method: Method,
        tasks: Sequence[str],
        options: Mapping[str, Any],
        seed: int,
        device: torch.device,
    ) -> None:
        self.method = method
        self.tasks = list(tasks)
        self.options = options
        self.seed = seed
        self.device = device
        self.object = method.build(tasks, options, device)
        self.step = 0

    def of(self, tasks: Sequence[str]) -> Any:
        """The object for the tasks of a step."""
        if list(tasks) == self.tasks:
            return self.object
        return self.method.build(tasks, self.options, self.device)

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Draw from torch's generators as on all other ranks, and leave them as they were."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derived_seed("balancer", self.seed, self.step))
            yield

    def advance(self) -> None:
        """Go to the next step."""
        self.step += 1

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "state": state_of(self.object)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        restore_state(self.object, state["state"], self.device)


class _Scalarized(WeightedLosses):
    """A scalarizer with weights that the losses of the step do not change.

    A step without some of the tasks trains the learned parameters of the others. DWA compares the
    mean losses of epochs: that of a task is over the steps that have it.
    """

    def __init__(self, held: _Held) -> None:
        super().__init__(held.tasks)
        self.held = held
        # Learned with the heads.
        self.learned = nn.ParameterList(held.object.parameters())
        self._epoch = _Epoch.of(self.tasks) if EPOCH_STEPS in held.method.options else None
        self._used = self.weights()
        self._weighted: list[str] = []

    def weights(self) -> Tensor:
        # A copy: calls of a scalarizer may count the losses that they get.
        with self.held.seeded():
            return _weights(deepcopy(self.held.object), self._vector([1.0] * len(self.tasks)))

    def combine(
        self, losses: Mapping[str, float], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        self._used, self._weighted = self.weights(), list(losses)
        if len(self.learned) and losses:
            self._learn(losses)
        if self._epoch is not None:
            self._epoch.add(losses)
            if self._epoch.is_over(self.held.options.get(EPOCH_STEPS, DEFAULT_EPOCH_STEPS)):
                self.held.object(self._vector(self._epoch.means(self.tasks)))
                self.held.object.step()
                self._epoch = _Epoch.of(self.tasks)
        self.held.advance()

    def metrics(self) -> dict[str, float]:
        weights = dict(zip(self.tasks, self._used.tolist(), strict=True))
        return {f"weight_{task}": weights[task] for task in self._weighted}

    def _learn(self, losses: Mapping[str, float]) -> None:
        """Backpropagate to the parameters of some tasks; each task has one of its own."""
        rows = [self.tasks.index(task) for task in losses]
        own = {
            name: torch.stack([parameter[row] for row in rows])
            for name, parameter in self.held.object.named_parameters()
        }
        scalarizer = self.held.of(list(losses))
        torch.func.functional_call(scalarizer, own, self._vector(list(losses.values()))).backward()

    def _vector(self, values: Sequence[float]) -> Tensor:
        device = self.learned[0].device if len(self.learned) else torch.device("cpu")
        return to_device(torch.tensor(values), device)

    def get_extra_state(self) -> dict[str, Any]:
        epoch = {} if self._epoch is None else {"epoch": asdict(self._epoch)}
        return {**self.held.state(), **epoch}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.held.restore(state)
        if self._epoch is not None:
            self._epoch = _Epoch(**state["epoch"])


@dataclass
class _Epoch:
    """The losses of an epoch of DWA.

    Args:
        sums: of the losses of each task.
        counts: of the steps with each task.
        steps: since the epoch began.
    """

    sums: dict[str, float]
    counts: dict[str, int]
    steps: int = 0

    @classmethod
    def of(cls, tasks: Sequence[str]) -> _Epoch:
        return cls(dict.fromkeys(tasks, 0.0), dict.fromkeys(tasks, 0))

    def add(self, losses: Mapping[str, float]) -> None:
        for task, loss in losses.items():
            self.sums[task] += loss
            self.counts[task] += 1
        self.steps += 1

    def is_over(self, steps: int) -> bool:
        """Whether it had these steps, and a step with each task."""
        return self.steps >= steps and all(self.counts.values())

    def means(self, tasks: Sequence[str]) -> list[float]:
        return [self.sums[task] / self.counts[task] for task in tasks]


class _ScalarizedGradients(GradientBalancer):
    """A scalarizer with weights that depend on the losses.

    These are known when the last micro-batch of the last rank is encoded; until then, the gradients
    of the tasks are kept apart.
    """

    def __init__(self, held: _Held) -> None:
        super().__init__(held.tasks)
        self.held = held
        self._weights: dict[str, float] = {}

    def combine(
        self, losses: Mapping[str, float], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        tasks = [task for task in self.tasks if task in losses]
        self._weights = {}
        if not tasks:
            return
        means = torch.tensor([losses[task] for task in tasks])
        scalarizer = self.held.of(tasks)
        if getattr(scalarizer, "_prev_losses", None) is not None:
            # FAMO learns from the losses after the update: those of the next step.
            scalarizer.update(means)
        with self.held.seeded():
            weights = _weights(scalarizer, means)
        self._weights = dict(zip(tasks, weights.tolist(), strict=True))
        super().combine(losses, shared, heads)
        for task, parameters in heads.items():
            for parameter in parameters:
                if parameter.grad is not None and task in self._weights:
                    parameter.grad.mul_(self._weights[task])
        self.held.advance()

    def aggregate(self, gradients: Tensor, tasks: Sequence[str]) -> Tensor:
        return gradients.new_tensor([self._weights[task] for task in tasks]) @ gradients

    def metrics(self) -> dict[str, float]:
        weights = {f"weight_{task}": weight for task, weight in self._weights.items()}
        return super().metrics() | weights

    def get_extra_state(self) -> dict[str, Any]:
        return self.held.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.held.restore(state)


class _Aggregated(GradientBalancer):
    """An aggregator. The metrics are its weights in the last step, if any, and the conflicts.

    If tasks are dropped and the method needs more than are left, a step takes their mean.
    """

    def __init__(self, held: _Held) -> None:
        super().__init__(held.tasks)
        self.held = held
        self._weights: Tensor | None = None
        self._weighted: list[str] = []

    def aggregate(self, gradients: Tensor, tasks: Sequence[str]) -> Tensor:
        try:
            aggregator = self.held.of(tasks)
        except UserError as cause:
            logger.warning("This step takes the mean of the gradients. %s", cause.what)
            return gradients.mean(dim=0)
        hook = (
            aggregator.weighting.register_forward_hook(self._keep_weights)
            if isinstance(aggregator, WeightedAggregator)
            else nullcontext()
        )
        with torch.no_grad(), self.held.seeded(), hook:
            combined: Tensor = aggregator(gradients)
        return combined

    def combine(
        self, losses: Mapping[str, float], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        self._weights = None
        self._weighted = [task for task in self.tasks if task in losses]
        super().combine(losses, shared, heads)
        self.held.advance()

    def metrics(self) -> dict[str, float]:
        weights = {} if self._weights is None else by_task("weight", self._weighted, self._weights)
        return super().metrics() | weights

    def get_extra_state(self) -> dict[str, Any]:
        return self.held.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.held.restore(state)

    def _keep_weights(self, weighting: nn.Module, inputs: Any, weights: Tensor) -> None:
        self._weights = weights


def _weights(scalarizer: Any, losses: Tensor) -> Tensor:
    """The derivatives of a scalarizer by the losses."""
    with torch.enable_grad():
        values = losses.clone().requires_grad_()
        (weights,) = torch.autograd.grad(scalarizer(values), values)
    return weights
