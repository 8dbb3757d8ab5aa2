"""Optimizers and learning-rate schedules of torch, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from s3prl_mtl.errors import UserError, nearest

FUSED_ON_GPU = (torch.optim.Adam, torch.optim.AdamW)
"""Optimizers with a fused kernel for GPUs; that of Adagrad is for CPUs only."""

# Arguments that the runner supplies, or that torch has deprecated.
_SUPPLIED = {"self", "params", "optimizer", "last_epoch", "verbose"}


def linear_schedule_with_warmup(
    optimizer: Optimizer, total_steps: int, num_warmup_steps: int = 0, num_hold_steps: int = 0
) -> LambdaLR:
    """Warm up from 0 to the full rate, hold it, then decay linearly to 0 at `total_steps`.

    A parameter group may have its own `num_warmup_steps`, and a `first_step` where it begins.
    """
    for name, steps in (("warmup", num_warmup_steps), ("hold", num_hold_steps)):
        if steps < 0:
            raise ValueError(f"num_{name}_steps is {steps}, below 0")
    factors: list[Callable[[int], float]] = []
    for group in optimizer.param_groups:
        warmup, first = group.get("num_warmup_steps", num_warmup_steps), group.get("first_step", 0)
        factors.append(partial(_linear_factor, first, warmup, num_hold_steps, total_steps))
    return LambdaLR(optimizer, factors)


def _linear_factor(
    first_step: int, warmup_steps: int, hold_steps: int, total_steps: int, step: int
) -> float:
    step, total_steps = step - first_step, total_steps - first_step
    if step < 0:
        return 0.0
    if step < warmup_steps:
        return step / warmup_steps
    decay = (total_steps - step) / max(1, total_steps - warmup_steps - hold_steps)
    return min(1.0, max(0.0, decay))


def _optimizers() -> dict[str, type[Optimizer]]:
    return {
        name: entry
        for name, entry in vars(torch.optim).items()
        # LBFGS evaluates the loss several times a step, on the same batches.
        if inspect.isclass(entry)
        and issubclass(entry, Optimizer)
        and entry is not Optimizer
        # SparseAdam takes sparse gradients only, which no head has.
        and name not in ("LBFGS", "SparseAdam")
    }


def _schedulers() -> dict[str, Any]:
    by_name: dict[str, Any] = {
        name: entry
        for name, entry in vars(lr_scheduler).items()
        if inspect.isclass(entry)
        and issubclass(entry, LRScheduler)
        # These need a metric, a function or other schedules, which a config cannot express.
        and name
        not in {
            "LRScheduler",
            "ReduceLROnPlateau",
            "LambdaLR",
            "MultiplicativeLR",
            "SequentialLR",
            "ChainedScheduler",
        }
        and not name.startswith("_")
    }
    by_name["linear_schedule_with_warmup"] = linear_schedule_with_warmup
    return by_name


def optimizer_settings(name: str) -> list[str]:
    """The names of the settings of an optimizer.

    Raises:
        UserError: torch has no such optimizer.
    """
    return _settings(_look_up(name, _optimizers(), "optimizer"))


def scheduler_settings(name: str) -> list[str]:
    """The names of the settings of a schedule.

    Raises:
        UserError: no such schedule.
    """
    return _settings(_look_up(name, _schedulers(), "scheduler"))


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], settings: Mapping[str, Any]
) -> Optimizer:
    """Build the optimizer of a config's `optimizer` section.

    Args:
        parameters: those of one group, or parameter groups with settings of their own.
        settings: of all groups that have none of their own; `groups` is ignored. On a GPU, `fused`
            is on by default where torch has such a kernel.

    Raises:
        UserError: an unknown name, or settings that the optimizer refuses.
    """
    kind = _look_up(settings["name"], _optimizers(), "optimizer")
    given: list[Any] = list(parameters)
    supplied = {"fused": True} if _can_fuse(kind, given, settings) else {}
    return _call(kind, "optimizer", settings, params=given, **supplied)


def _can_fuse(
    kind: type[Optimizer],
    parameters: Sequence[nn.Parameter | dict[str, Any]],
    settings: Mapping[str, Any],
) -> bool:
    """Whether to update in one kernel: on a GPU, unless the settings say how to."""
    groups = [entry["params"] if isinstance(entry, dict) else [entry] for entry in parameters]
    return (
        kind in FUSED_ON_GPU
        and not settings.keys() & {"fused", "foreach", "capturable", "differentiable"}
        and all(p.is_cuda and p.is_floating_point() for p in chain(*groups))
    )


def make_scheduler(
    optimizer: Optimizer, settings: Mapping[str, Any] | None, total_steps: int
) -> LRScheduler | None:
    """Build the schedule of a config's `scheduler` section; None for a constant rate.

    Raises:
        UserError: an unknown name, or settings that the schedule refuses.
    """
    if not settings:
        return None
    kind = _look_up(settings["name"], _schedulers(), "scheduler")
    supplied: dict[str, Any] = {"optimizer": optimizer}
    parameters = inspect.signature(kind).parameters
    if "total_steps" in parameters and "total_steps" not in settings:
        supplied["total_steps"] = total_steps
    return _call(kind, "scheduler", settings, **supplied)


def _look_up(name: str, known: Mapping[str, Any], section: str) -> Any:
    if name not in known:
        raise UserError(
            f"Unknown {section} {name!r}.",
            where=f"{section}.name",
            fix=nearest(name, list(known)),
            code="unknown-name",
        )
    return known[name]


def _settings(kind: Any) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name not in _SUPPLIED]


def _call(kind: Any, section: str, settings: Mapping[str, Any], **supplied: Any) -> Any:
    chosen = {key: value for key, value in settings.items() if key not in ("name", "groups")}
    try:
        return kind(**supplied, **chosen)
    except (TypeError, ValueError) as cause:
        raise UserError(
            f"{settings['name']} does not take these settings: {cause}.",
            where=section,
            code="invalid-value",
        ) from cause
