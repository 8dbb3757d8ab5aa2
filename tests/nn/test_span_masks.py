"""Span masks against fairseq 0.12.2's: fixtures/ssl/make_with_fairseq.py made them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from s3prl_mtl.nn import SpanMasking
from tests.mistakes import user_error

MASKS = Path(__file__).parents[1] / "fixtures" / "ssl" / "span_masks.json"


def test_masks_equal_fairseqs() -> None:
    entries = json.loads(MASKS.read_text())
    kinds = {settings[2] for settings, *_ in entries}
    assert kinds == {"static", "uniform", "normal", "poisson"}
    for settings, size, seed, wanted in entries:
        mask = SpanMasking(*settings).draw(size, np.random.RandomState(seed))
        assert "".join("01"[masked] for masked in mask.int().tolist()) == wanted, settings


@pytest.mark.parametrize("space", [0, 1, 4])
def test_spans_that_do_not_overlap_keep_their_space(space: int) -> None:
    spans = SpanMasking(0.5, length=5, no_overlap=True, min_space=space)
    counts = set()
    for seed in range(30):
        mask = spans.draw(60, np.random.RandomState(seed)).int()
        changes = torch.diff(torch.cat([torch.zeros(1), mask, torch.zeros(1)])).nonzero()[:, 0]
        begins, ends = changes[::2], changes[1::2]
        # Without space, spans may touch.
        lengths = (ends - begins).tolist()
        assert all(length == 5 or (space == 0 and length % 5 == 0) for length in lengths)
        assert all((begins[1:] - ends[:-1]) >= space)
        counts.add(len(lengths))
    assert max(counts) > 1


def test_a_sequence_without_room_is_not_masked() -> None:
    spans = SpanMasking(0.8, length=10, no_overlap=True, min_spans=2)
    assert not spans.draw(4, np.random.RandomState(0)).any()
    assert not SpanMasking(0.0).draw(40, np.random.RandomState(0)).any()


@pytest.mark.parametrize(
    "wrong", [{"prob": -0.1}, {"length": 0}, {"selection": "zipf"}, {"min_space": -1}]
)
def test_values_out_of_range(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with user_error("invalid-value", where=name):
        SpanMasking(**{"prob": 0.5, **wrong})  # type: ignore[arg-type]
