"""Whether two nested values are the same, bit for bit."""

from __future__ import annotations

import torch

from s3prl_mtl.checkpoint.contents import RunCheckpoint


def assert_same(first: object, second: object, where: str = "") -> None:
    """Compare tensors, mappings, sequences and plain values; `where` is for the message."""
    if isinstance(first, RunCheckpoint):
        assert_same(first.to_dict(), second.to_dict(), where)
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
