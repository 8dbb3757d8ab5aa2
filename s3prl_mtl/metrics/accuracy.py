"""The share of right answers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError


def accuracy(references: Tensor | Iterable[object], hypotheses: Tensor | Iterable[object]) -> float:
    """The fraction of items whose hypothesis equals the reference.

    Args:
        references: one item each: a class, or a row or tuple of several that must all be right
            (the action, object and location of an intent).
        hypotheses: the same, in the same order.

    Raises:
        ValueError: the two differ in number.
        UserError: there is no item.
    """
    expected, found = _items(references), _items(hypotheses)
    if len(expected) != len(found):
        raise ValueError(f"{len(expected)} references, but {len(found)} hypotheses")
    if not expected:
        raise UserError("An accuracy needs at least one item.")
    pairs = zip(expected, found, strict=True)
    return sum(reference == hypothesis for reference, hypothesis in pairs) / len(expected)


def _items(items: Tensor | Iterable[object]) -> list[object]:
    """Plain Python values: numbers, strings, or lists of them."""
    if isinstance(items, Tensor):
        return items.tolist()
    plain = [item.tolist() if isinstance(item, torch.Tensor) else item for item in items]
    return [list(item) if isinstance(item, tuple) else item for item in plain]
