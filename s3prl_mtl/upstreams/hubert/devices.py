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
