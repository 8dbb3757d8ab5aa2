"""Goldens of SUPERB's metrics: inputs and what the original programs gave for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import editdistance
import pytest
import torch
from rapidfuzz.distance import Levenshtein

HEADS = Path(__file__).parents[1] / "fixtures" / "heads"


@pytest.fixture
def golden() -> Callable[[str], dict[str, Any]]:
    return lambda name: torch.load(HEADS / f"{name}.pt", weights_only=True)


@pytest.fixture(params=[editdistance.eval, Levenshtein.distance], ids=["editdistance", "rapidfuzz"])
def either_edit_distance(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Score with the package for Python up to 3.12, then with the one from 3.13 on."""
    monkeypatch.setattr("s3prl_mtl.metrics.edit_distance.edit_distance", request.param)
    distance: Callable[..., int] = request.param
    return distance
