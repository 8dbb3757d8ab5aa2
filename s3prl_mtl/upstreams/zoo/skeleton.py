"""A checkpoint without its weights: enough for a program to build its model again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.safe_torch import NamingPickle, from_plain, load_inert, to_plain

_SHAPE = "__shape__"
KEPT_ELEMENTS = 4096
"""Smaller tensors are kept as they are: statistics and tables need not be parameters."""


def skeleton_of(path: Path) -> Any | None:
    """The contents of a PyTorch file as plain values, large tensors as their shapes.

    Returns:
        None for a file that does not load without executing what it holds.
    """
    try:
        return emptied(to_plain(load_inert(path, kind="checkpoint")))
    except UserError:
        return None


def write_skeleton(skeleton: Any, path: Path) -> None:
    """Write a file like the one that the skeleton is of, its large tensors all zeros."""
    torch.save(from_plain(_filled(skeleton)), path, pickle_module=NamingPickle)


def emptied(value: Any) -> Any:
    """Plain values and tensors, with the shapes of large tensors in their place."""
    if isinstance(value, Tensor):
        if value.numel() <= KEPT_ELEMENTS:
            return value.clone()
        return {_SHAPE: list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, OrderedDict):
        return OrderedDict((key, emptied(held)) for key, held in value.items())
    if isinstance(value, Mapping):
        return {key: emptied(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(emptied(held) for held in value)
    return value


def _filled(value: Any) -> Any:
    if isinstance(value, Mapping) and _SHAPE in value:
        shape = list(value[_SHAPE])
        # One stored zero for all of its elements: the file stays small.
        zero = torch.zeros(1, dtype=getattr(torch, value["dtype"]))
        return zero.as_strided(shape, [0] * len(shape))
    if isinstance(value, OrderedDict):
        return OrderedDict((key, _filled(held)) for key, held in value.items())
    if isinstance(value, Mapping):
        return {key: _filled(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_filled(held) for held in value)
    return value
