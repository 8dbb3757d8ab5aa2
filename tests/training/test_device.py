"""The device and precision of a run."""

from __future__ import annotations

import torch

from s3prl_mtl.training.device import use_tf32
from tests.mistakes import user_error


def test_tf32_needs_a_gpu_that_has_it() -> None:
    with user_error("device-unavailable", where="--precision tf32"):
        use_tf32(torch.device("cpu"))
