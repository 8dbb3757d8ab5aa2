"""Which kernels a device runs, and copies to it."""

from __future__ import annotations

import torch
from torch import Tensor


def on_gpu(x: Tensor) -> bool:
    """Whether the kernels of a GPU are used: few and large, since it waits for Python."""
    return x.device.type == "cuda"


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU without waiting for the work of a GPU."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def concatenate_on(device: torch.device, parts: list[Tensor]) -> Tensor:
    """Concatenate tensors of the CPU on a device, without waiting for the work of a GPU."""
    if device.type != "cuda":
        return torch.cat(parts).to(device)
    size = sum(map(len, parts)), *parts[0].shape[1:]
    pinned = torch.empty(size, dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(parts, out=pinned).to(device, non_blocking=True)
