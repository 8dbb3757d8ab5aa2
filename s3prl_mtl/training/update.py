"""The update at the end of a step: clip the gradients, then step the optimizer."""

from __future__ import annotations

import math
from itertools import chain

from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from s3prl_mtl.nn import to_device
from s3prl_mtl.training.run import Run


def clip_gradients(run: Run, balancer: nn.Module, limit: float) -> Tensor:
    """Clip the gradients by their joint norm over all ranks, if it is finite.

    Returns:
        the norm before, a scalar on the device.
    """
    world, device = run.world, run.encoder.device
    counted = [*run.counted, *(balancer.parameters() if world.is_lead else ())]
    gradients = [p.grad for p in counted if p.grad is not None]
    norm = to_device(nn.utils.get_total_norm(gradients), device)
    if world.size > 1:
        squares = world.sum(norm.double().square().reshape(1))
        norm = squares[0].sqrt().float()
    held = [*run.shared, *chain(*run.heads.values()), *balancer.parameters()]
    # A norm of 0 leaves the gradients as they are.
    finite = norm.nan_to_num(nan=0.0, posinf=0.0)
    nn.utils.clip_grads_with_norm_(held, limit, finite)
    return norm


def update_parameters(
    run: Run, optimizer: Optimizer, scheduler: LRScheduler | None, norm: Tensor
) -> None:
    """Update with gradients of this norm; skip and count the step if it is not finite."""
    # Fused SGD would leave its momentum uninitialised if it skips the first step.
    skips_on_device = isinstance(optimizer, Adam) and all(
        group.get("fused") for group in optimizer.param_groups
    )
    if skips_on_device:
        # Torch's contract for gradient scalers: the kernels do nothing if this is 1.
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        optimizer.step()
    value = norm.item()  # the CPU waits for the GPU here
    sources: list[str] = []
    if not math.isfinite(value):
        sources = [block.name for block in run.blocks() if not block.has_finite_gradients]
    elif not skips_on_device:
        optimizer.step()
    run.skips.count_norm(run.step + 1, value, sources)
    optimizer.zero_grad(set_to_none=True)
    if scheduler is not None:
        scheduler.step()
