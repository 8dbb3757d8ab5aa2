"""The state of every random generator that a run draws from, as plain values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of all of them; `torch.load(weights_only=True)` can read it back."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    keys_tensor = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": [str(name), keys_tensor, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Continue from what `random_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([entry.cpu() for entry in state["cuda"]])


class RandomStream:
    """Random numbers apart, for code that draws from the global generators.

    Python's, numpy's and torch's generator of the CPU are covered.

    Args:
        seed: what is drawn is a pure function of it.
    """

    def __init__(self, seed: int) -> None:
        self._state = (
            random.Random(seed).getstate(),
            np.random.RandomState(seed % 2**32).get_state(),
            torch.Generator().manual_seed(seed).get_state(),
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the global generators go on from where they were left inside the last time."""
        outside = _processor_state()
        _set_processor_state(self._state)
        try:
            yield
        finally:
            self._state = _processor_state()
            _set_processor_state(outside)


def _processor_state() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_processor_state(state: tuple[Any, Any, torch.Tensor]) -> None:
    python, of_numpy, of_torch = state
    random.setstate(python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
