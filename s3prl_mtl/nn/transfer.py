"""Copies between CPU and GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; the CPU does not wait for a copy to a GPU.

    Args:
        tensor: of any shape. On the CPU it is copied through pinned memory, which torch does not
            reuse before the copy is done.
        device: of the result.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def concatenate_on(device: torch.device, parts: list[Tensor]) -> Tensor:
    """Concatenate tensors of the CPU on a device; the CPU does not wait for the copy."""
    if device.type != "cuda":
        return torch.cat(parts).to(device)
    size = sum(map(len, parts)), *parts[0].shape[1:]
    pinned = torch.empty(size, dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(parts, out=pinned).to(device, non_blocking=True)


def start_to_cpu(tensor: Tensor) -> Callable[[], Tensor]:
    """Start copying a tensor to the CPU.

    Returns:
        A function that waits for this copy only, not for later work of the GPU, and returns it.
    """
    copied = tensor.detach().to("cpu", non_blocking=True)
    if not tensor.is_cuda:
        return lambda: copied
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(tensor.device))

    def wait() -> Tensor:
        done.synchronize()
        return copied

    return wait


def to_cpu(values: T) -> T:
    """Copy nested dicts, lists and (named) tuples with all tensors on the CPU, without gradients.

    The CPU waits once, for all tensors together. Other values are kept. No tensor of the result
    shares memory with another one.
    """
    copied: T = _copies(values)
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return copied


def _copies(value: Any) -> Any:
    if isinstance(value, Tensor):
        # Without `copy`, pickling a row of a batch would write the whole batch.
        return value.detach().to("cpu", non_blocking=True, copy=True)
    if isinstance(value, dict):
        copied = value.copy()
        copied.update((key, _copies(entry)) for key, entry in value.items())
        return copied
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_copies, value))
    return type(value)(map(_copies, value)) if type(value) in (list, tuple) else value
