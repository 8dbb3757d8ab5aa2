"""The state of torchjd's objects as tensors and plain values.

torchjd keeps most of its state in plain attributes, which are not part of state dicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_OF_MODULES = set(vars(nn.Module()))


def state_of(method: nn.Module) -> dict[str, Any]:
    """The attributes, buffers and parameters of a module and its submodules, plain."""
    return {
        name: {key: _plain(value) for key, value in _attributes(module) if _is_state(value)}
        for name, module in method.named_modules()
    }


def restore_state(method: nn.Module, state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what :func:`state_of` gave.

    Args:
        method: of the same class and options.
        state: from a checkpoint.
        device: of tensors that were not on the CPU.
    """
    for name, module in method.named_modules():
        for key, value in state[name].items():
            restored = _restored(value, device)
            if isinstance(value, Mapping) and "optimizer" in value:
                # FAMO makes its optimizer at its first update.
                optimizer = torch.optim.Adam(module.parameters())
                optimizer.load_state_dict(restored)
                setattr(module, key, optimizer)
            elif isinstance(getattr(module, key, None), nn.Parameter):
                getattr(module, key).data.copy_(restored)
            else:
                setattr(module, key, restored)
        if state[name].get("step"):
            # NashMTL builds its problem at its first step.
            getattr(module, "_init_optim_problem", lambda: None)()


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module._parameters.items()
    yield from module._buffers.items()
    yield from ((key, value) for key, value in vars(module).items() if key not in _OF_MODULES)


def _is_state(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_state, value))
    kinds = (bool, int, float, str, Tensor, numpy.ndarray, torch.dtype, torch.device, Optimizer)
    return value is None or isinstance(value, kinds)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": value.detach().clone(), "on_cpu": value.device.type == "cpu"}
    if isinstance(value, numpy.ndarray):
        return {"array": torch.from_numpy(value.copy())}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, Optimizer):
        return {"optimizer": value.state_dict()}
    if isinstance(value, tuple):
        return {"tuple": [_plain(entry) for entry in value]}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _restored(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_restored(entry, device) for entry in value]
    if not isinstance(value, Mapping):
        return value
    ((kind, content),) = ((k, v) for k, v in value.items() if k != "on_cpu")
    if kind == "tensor":
        return content.to("cpu" if value["on_cpu"] else device)
    if kind == "array":
        return content.numpy().copy()
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "device":
        return torch.device(content)
    return tuple(_restored(entry, device) for entry in content) if kind == "tuple" else content
