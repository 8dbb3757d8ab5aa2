"""Bitwise comparison of nested values."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import torch


def assert_same(first: object, second: object, where: str = "") -> None:
    """Compare tensors, mappings, sequences and plain values; `where` is for the message."""
    if is_dataclass(first):
        for part in filter(lambda part: part.compare, fields(first)):
            assert_same(getattr(first, part.name), getattr(second, part.name), part.name)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    else:
        assert first == second, where
