"""Freed memory goes back to the system."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from s3prl_mtl.inference.memory import release_freed


def resident_mb() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc keeps the gaps"
)
def test_gaps_between_blocks_in_use_are_released() -> None:
    blocks = [np.ones(12_500) for _ in range(2000)]  # 100 kB each, below what glibc maps
    kept = blocks[::2]
    before = resident_mb()
    del blocks
    release_freed()
    assert resident_mb() < before - 50
    assert all(block.all() for block in kept)
