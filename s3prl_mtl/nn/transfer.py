"""Copies between CPU and GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    # A copy to the CPU has to be complete before it is read.
    return tensor.to(device, non_blocking=device.type != "cpu")


def to_device_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors (n_i, ...) on a device, as by :func:`to_device`; a GPU gets one copy for all."""
    if device.type != "cuda" or tensors[0].device.type != "cpu":
        return [to_device(tensor, device) for tensor in tensors]
    lengths = [len(tensor) for tensor in tensors]
    size = sum(lengths), *tensors[0].shape[1:]
    pinned = torch.empty(size, dtype=tensors[0].dtype, pin_memory=True)
    joined = torch.cat(list(tensors), out=pinned).to(device, non_blocking=True)
    return list(joined.split(lengths))


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


@torch.no_grad()
def to_cpu(values: T) -> T:
    """Copy nested dicts, lists and (named) tuples with all tensors on the CPU, without gradients.

    There is one copy for each type of tensors, however many there are. Other values are kept, also
    objects that have tensors.
    """
    copies: dict[int, Tensor] = {}
    found: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}

    def note(tensor: Tensor) -> None:
        if tensor.layout != torch.strided:
            copies[id(tensor)] = tensor.cpu()
        else:
            found.setdefault((tensor.device, tensor.dtype), []).append(tensor)

    _replaced(values, note)
    for tensors in found.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu()
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            # Cloned: pickling a view would write all of `flat`.
            copies[id(tensor)] = part.clone().view(tensor.shape)
    copied: T = _replaced(values, lambda tensor: copies[id(tensor)])
    return copied


def _replaced(value: Any, replace: Callable[[Tensor], Any]) -> Any:
    """The same containers with other tensors."""
    if isinstance(value, Tensor):
        return replace(value)
    if isinstance(value, dict):
        copied = value.copy()
        copied.update((key, _replaced(entry, replace)) for key, entry in value.items())
        return copied
    if not isinstance(value, list | tuple):
        return value
    entries = [_replaced(entry, replace) for entry in value]
    return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
