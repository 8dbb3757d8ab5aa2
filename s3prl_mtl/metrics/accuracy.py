"""Classification accuracy."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError


def accuracy(references: Tensor | Iterable[object], hypotheses: Tensor | Iterable[object]) -> float:
    """Fraction of items with equal hypothesis and reference.

    Args:
        references: one item per utterance: a class, or a row or tuple of classes that must all be
            correct (action, object and location of an intent).
        hypotheses: in the same format and order.

    Raises:
        ValueError: different numbers of references and hypotheses.
        UserError: no items.
    """
    expected, found = _items(references), _items(hypotheses)
    if len(expected) != len(found):
        raise ValueError(f"{len(expected)} references, but {len(found)} hypotheses")
    if not expected:
        raise UserError("The accuracy is undefined without items.", code="undefined-metric")
    pairs = zip(expected, found, strict=True)
    return sum(reference == hypothesis for reference, hypothesis in pairs) / len(expected)


def _items(items: Tensor | Iterable[object]) -> list[object]:
    """Items as plain Python values: numbers, strings, or lists of them."""
    if isinstance(items, Tensor):
        return items.tolist()
    plain = [item.tolist() if isinstance(item, torch.Tensor) else item for item in items]
    return [list(item) if isinstance(item, tuple) else item for item in plain]
