"""The seconds of audio of one forward and backward pass."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.8
"""Of the free memory of a GPU that a pass may take by the measured limit."""


class PassLimit:
    """The most seconds of audio in a pass: given, or measured once from the memory of a GPU.

    Args:
        seconds: the limit; None to measure it on a GPU, and for none on a CPU.
        device: of the run.

    Attributes:
        seconds: the limit, infinite as long as it is not known.
        exists: whether there is or will be a limit; the same on all ranks.
    """

    def __init__(self, seconds: float | None = None, device: torch.device | None = None) -> None:
        self._given = seconds
        self._gpu = device if device is not None and device.type == "cuda" else None
        self.exists = seconds is not None or self._gpu is not None
        self.begin()

    def begin(self) -> None:
        """Begin to measure, unless the limit was given: at first, and when more is trained."""
        self.seconds = math.inf if self._given is None else self._given
        self._steps = 0

    @contextmanager
    def measuring(self, seconds: float) -> Iterator[None]:
        """Measure the memory of a step, if the limit is not known yet.

        Args:
            seconds: of audio in the largest pass of the step.
        """
        self._steps += 1
        # The first step makes the state of the optimizer and the plans of libraries.
        if self._gpu is None or math.isfinite(self.seconds) or self._steps == 1 or seconds == 0:
            yield
            return
        torch.cuda.reset_peak_memory_stats(self._gpu)
        held = torch.cuda.memory_allocated(self._gpu)
        yield
        needed = torch.cuda.max_memory_allocated(self._gpu) - held
        free = torch.cuda.mem_get_info(self._gpu)[0] + torch.cuda.memory_reserved(self._gpu) - held
        self.seconds = seconds_that_fit(seconds, needed, free)
        logger.info(
            "A pass may have %.0f s of audio: %.0f s took %.1f of %.1f GB.",
            *(self.seconds, seconds, needed / 1e9, free / 1e9),
        )


def seconds_that_fit(seconds: float, needed: int, free: int) -> float:
    """The most seconds of a pass, where so many have needed so many bytes; at least as many."""
    return max(seconds, seconds * MEMORY_SHARE * free / max(1, needed))
