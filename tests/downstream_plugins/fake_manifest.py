"""A manifest of cuts that are given, for the findings of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


class FakeManifest(list[Any]):
    """What findings look at of a `Manifest`; its cuts have `id`, `duration` and `custom`."""

    def ids(self) -> Iterator[str]:
        return (cut.id for cut in self)

    def labels(self) -> Iterator[dict[str, Any]]:
        return (cut.custom["labels"] for cut in self)

    @property
    def durations(self) -> np.ndarray:
        return np.array([cut.duration for cut in self])
