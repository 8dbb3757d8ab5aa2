"""Batches arrive from loader workers as they were sent."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from s3prl_mtl.data.transport import pack


@dataclass
class Item:
    waveforms: list[torch.Tensor]
    others: Any


def test_a_value_is_unpacked_as_it_was_packed() -> None:
    waveforms = [torch.randn(n) for n in (5, 0, 7)]
    labels = torch.arange(6).view(2, 3)
    shared = torch.tensor(3.0)
    value = Item(waveforms, ([labels, labels.t()], np.ones(3), {"text": "a", "n": shared}, None))
    packed = pickle.loads(pickle.dumps(pack(value)))
    assert {dtype: len(values) for dtype, values in packed.values.items()} == {
        torch.float32: 13,
        torch.int64: 12,
    }
    found = packed.unpack()
    torch.testing.assert_close(found.waveforms, waveforms, rtol=0, atol=0)
    (straight, turned), array, others, nothing = found.others
    assert torch.equal(straight, labels) and torch.equal(turned, labels.t())
    assert np.array_equal(array, np.ones(3)) and nothing is None
    assert others["text"] == "a" and others["n"].shape == () and others["n"] == 3


def test_other_tensors_travel_as_they_are() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    sparse = torch.eye(3).to_sparse()
    found = pack([parameter, sparse]).unpack()
    assert isinstance(found[0], torch.nn.Parameter) and found[1].is_sparse


def test_changing_a_tensor_leaves_the_others() -> None:
    first, second = pack([torch.zeros(2), torch.zeros(2)]).unpack()
    first.add_(1)
    assert first.tolist() == [1, 1] and second.tolist() == [0, 0]
