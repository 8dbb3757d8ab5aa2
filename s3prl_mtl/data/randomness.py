"""Seeds and states of the global random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed the generators of Python, numpy and torch (on all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """State of all generators, loadable with `torch.load(weights_only=True)`."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    keys_tensor = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": [str(name), keys_tensor, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a state from `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([entry.cpu() for entry in state["cuda"]])


class RandomStream:
    """A random state of its own for code that draws from the global generators.

    Covers the CPU generators of Python, numpy and torch.

    Args:
        seed: seed of all three.
    """

    def __init__(self, seed: int) -> None:
        self._state = (
            random.Random(seed).getstate(),
            np.random.RandomState(seed % 2**32).get_state(),
            torch.Generator().manual_seed(seed).get_state(),
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        """Swap this stream's state into the global generators, and back on exit."""
        outside = _cpu_state()
        _set_cpu_state(self._state)
        try:
            yield
        finally:
            self._state = _cpu_state()
            _set_cpu_state(outside)


def _cpu_state() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_cpu_state(state: tuple[Any, Any, torch.Tensor]) -> None:
    python_state, numpy_state, torch_state = state
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)
