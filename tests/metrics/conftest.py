"""Goldens of SUPERB's metrics: inputs, and outputs of the original programs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

HEADS = Path(__file__).parents[1] / "fixtures" / "heads"


@pytest.fixture
def golden() -> Callable[[str], dict[str, Any]]:
    return lambda name: torch.load(HEADS / f"{name}.pt", weights_only=True)


EDIT_DISTANCES = {"rapidfuzz": ("rapidfuzz.distance.Levenshtein", "distance")}
if sys.version_info < (3, 13):  # editdistance has no wheel for later ones
    EDIT_DISTANCES["editdistance"] = ("editdistance", "eval")


@pytest.fixture(params=sorted(EDIT_DISTANCES))
def either_edit_distance(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Score with the package for Python up to 3.12, then with the one from 3.13 on."""
    module, function = EDIT_DISTANCES[request.param]
    distance: Callable[..., int] = getattr(import_module(module), function)
    monkeypatch.setattr("s3prl_mtl.metrics.edit_distance.edit_distance", distance)
    return distance
