"""Return freed memory to the operating system."""

from __future__ import annotations

import ctypes
import sys


def release_freed() -> None:
    """Return freed memory to the system, where the C library is glibc; elsewhere do nothing.

    Waveforms of many lengths leave gaps between the blocks in use. glibc keeps these gaps and does
    not fill all of them again.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
