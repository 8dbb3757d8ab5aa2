"""Copies between CPU and GPU."""

from __future__ import annotations

import pickle
from collections import defaultdict
from typing import Any, NamedTuple

import torch

from s3prl_mtl.nn import to_cpu


class Pair(NamedTuple):
    number: int
    tensor: torch.Tensor


def test_nested_records_are_copied_with_everything_else_as_it_is() -> None:
    weight = torch.ones(2, requires_grad=True)
    records: dict[str, list[Any]] = defaultdict(
        list, {"a": [weight, ("x", {"y": weight * 2}), Pair(3, weight + 1)]}
    )
    copied = to_cpu(records)
    weight.data.zero_()
    assert type(copied) is defaultdict and copied["new"] == []
    first, (name, nested), pair = copied["a"]
    assert name == "x" and pair.number == 3 and torch.equal(pair.tensor, torch.full((2,), 2.0))
    assert torch.equal(first, torch.ones(2)) and torch.equal(nested["y"], torch.full((2,), 2.0))
    assert not first.requires_grad and not nested["y"].requires_grad


def test_rows_of_a_batch_are_pickled_without_the_batch() -> None:
    rows = to_cpu([*torch.zeros(100, 100)])
    assert len(pickle.dumps(rows)) < 2 * 4 * 100 * 100 + 100_000
