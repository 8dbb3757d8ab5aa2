from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

HEADS = Path(__file__).parents[2] / "fixtures" / "heads"


@pytest.fixture
def write_audio() -> Callable[..., Path]:
    """Writes a noise file of some duration and sample rate."""

    def write(path: Path, seconds: float = 0.1, rate: int = 16_000) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate))
        soundfile.write(path, noise, rate)
        return path

    return write


@pytest.fixture
def write_text() -> Callable[[Path, str], Path]:
    """Writes a text file, its folders included."""

    def write(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def golden() -> Callable[[str], dict]:
    """What the original program gave for a task."""

    def load(task: str) -> dict:
        torch.set_num_threads(1)
        return torch.load(HEADS / f"{task}.pt", weights_only=True)

    return load
