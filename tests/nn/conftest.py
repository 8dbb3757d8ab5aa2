"""Goldens of SUPERB's heads: outputs of the original programs for fixed inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HEADS = Path(__file__).parents[1] / "fixtures" / "heads"


@pytest.fixture
def golden() -> Callable[[str], dict[str, Any]]:
    return lambda name: torch.load(HEADS / f"{name}.pt", weights_only=True)
