"""Methods of torchjd as balancers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torchjd.aggregation import WeightedAggregator

from s3prl_mtl.balancing.base import Balancer, GradientBalancer, Heads
from s3prl_mtl.balancing.torchjd_methods import DEFAULT_EPOCH_STEPS, EPOCH_STEPS, Method
from s3prl_mtl.balancing.torchjd_state import restore_state, state_of
from s3prl_mtl.balancing.weighted import WeightedLosses, by_task
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.nn import to_device


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
        UserError: as `Method.build`.
    """
    if method.level == "gradient":
        return _Aggregated(_Held(method, tasks, options, seed, torch.device(device)))
    # The losses of a step are on the CPU.
    held = _Held(method, tasks, options, seed, torch.device("cpu"))
    return _ScalarizedGradients(held) if method.keeps_gradients else _Scalarized(held)


class _Held:
    """An object of torchjd with its state. Not a submodule: torchjd's state dicts are incomplete.

    A step without one of the tasks uses a new object for the others and leaves the state as it is.
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
        epoch = self.options.get(EPOCH_STEPS, DEFAULT_EPOCH_STEPS)
        if EPOCH_STEPS in self.method.options and self.step % epoch == 0:
            self.object.step()

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "state": state_of(self.object)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        restore_state(self.object, state["state"], self.device)


class _Scalarized(WeightedLosses):
    """A scalarizer with weights that the losses of the step do not change."""

    def __init__(self, held: _Held) -> None:
        super().__init__(held.tasks)
        self._held = held
        # Learned with the heads.
        self.learned = nn.ParameterList(held.object.parameters())

    def weights(self) -> Tensor:
        # A copy: calls of a scalarizer may count the losses that they get.
        with self._held.seeded():
            return _weights(deepcopy(self._held.object), self._vector([1.0] * len(self.tasks)))

    def combine(
        self, losses: Mapping[str, float], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        if len(losses) == len(self.tasks):
            with self._held.seeded():
                total = self._held.object(self._vector([losses[task] for task in self.tasks]))
            if len(self.learned):
                total.backward()
        self._held.advance()

    def _vector(self, values: Sequence[float]) -> Tensor:
        device = self.learned[0].device if len(self.learned) else torch.device("cpu")
        return to_device(torch.tensor(values), device)

    def get_extra_state(self) -> dict[str, Any]:
        return self._held.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._held.restore(state)


class _ScalarizedGradients(GradientBalancer):
    """A scalarizer with weights that depend on the losses.

    These are known when the last micro-batch of the last rank is encoded; until then, the gradients
    of the tasks are kept apart.
    """

    def __init__(self, held: _Held) -> None:
        super().__init__(held.tasks)
        self._held = held
        self._weights: dict[str, float] = {}

    def combine(
        self, losses: Mapping[str, float], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        tasks = [task for task in self.tasks if task in losses]
        if not tasks:
            return
        means = torch.tensor([losses[task] for task in tasks])
        scalarizer = self._held.of(tasks)
        if getattr(scalarizer, "_prev_losses", None) is not None:
            # FAMO learns from the losses after the update: those of the next step.
            scalarizer.update(means)
        with self._held.seeded():
            weights = _weights(scalarizer, means)
        self._weights = dict(zip(tasks, weights.tolist(), strict=True))
        super().combine(losses, shared, heads)
        for task, parameters in heads.items():
            for parameter in parameters:
                if parameter.grad is not None and task in self._weights:
                    parameter.grad.mul_(self._weights[task])
        self._held.advance()

    def aggregate(self, gradients: Tensor, tasks: Sequence[str]) -> Tensor:
        return gradients.new_tensor([self._weights[task] for task in tasks]) @ gradients

    def metrics(self) -> dict[str, float]:
        weights = {f"weight_{task}": weight for task, weight in self._weights.items()}
        return super().metrics() | weights

    def get_extra_state(self) -> dict[str, Any]:
        return self._held.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._held.restore(state)


class _Aggregated(GradientBalancer):
    """An aggregator. The metrics are its last weights, if it has any, and the conflicts."""

    def __init__(self, held: _Held) -> None:
        super().__init__(held.tasks)
        self._held = held
        self._weights: Tensor | None = None
        if isinstance(held.object, WeightedAggregator):
            held.object.weighting.register_forward_hook(self._keep_weights)

    def aggregate(self, gradients: Tensor, tasks: Sequence[str]) -> Tensor:
        with torch.no_grad(), self._held.seeded():
            combined: Tensor = self._held.of(tasks)(gradients)
        return combined

    def combine(
        self, losses: Mapping[str, float], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        super().combine(losses, shared, heads)
        self._held.advance()

    def metrics(self) -> dict[str, float]:
        weights = {} if self._weights is None else by_task("weight", self.tasks, self._weights)
        return super().metrics() | weights

    def get_extra_state(self) -> dict[str, Any]:
        return self._held.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._held.restore(state)

    def _keep_weights(self, weighting: nn.Module, inputs: Any, weights: Tensor) -> None:
        self._weights = weights


def _weights(scalarizer: Any, losses: Tensor) -> Tensor:
    """The derivatives of a scalarizer by the losses."""
    with torch.enable_grad():
        values = losses.clone().requires_grad_()
        (weights,) = torch.autograd.grad(scalarizer(values), values)
    return weights
