"""Fixtures for tests of the nine tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

HEADS = Path(__file__).parents[1] / "fixtures" / "heads"


@pytest.fixture(scope="session")
def golden() -> Any:
    """Reads what s3prl's expert of a task gave on fixed inputs."""

    def read(name: str) -> dict[str, Any]:
        return torch.load(HEADS / f"{name}.pt", weights_only=True)

    return read


@pytest.fixture
def cut() -> Callable[..., SimpleNamespace]:
    """Makes the part of a lhotse cut that findings look at."""

    def make(name: str, seconds: float = 10.0, **labels: Any) -> SimpleNamespace:
        recording = SimpleNamespace(duration=seconds)
        return SimpleNamespace(
            id=name, duration=seconds, recording=recording, custom={"labels": labels}
        )

    return make


class RecordingLogger:
    """Keeps the scalars that an expert reports."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars[tag] = scalar_value


@pytest.fixture
def scalars() -> RecordingLogger:
    return RecordingLogger()
