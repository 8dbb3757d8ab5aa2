"""The device of a process: the choice of `--device`."""

from __future__ import annotations

import os

import torch

from s3prl_mtl.errors import UserError


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device for `--device`; `auto` selects a GPU if available.

    Args:
        name: of the device; `cuda` without a number is the GPU of this rank.
        local_rank: index of this process among those of this machine.

    Raises:
        UserError: the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch does not find a GPU")
        if device.type == "cuda" and device.index is None:
            gpus = torch.cuda.device_count()
            if local_rank >= gpus:
                raise UserError(
                    f"Process {local_rank} of this machine has no GPU: there are {gpus}.",
                    where="torchrun --nproc_per_node",
                    fix=f"Start {gpus} processes here, or use --device cpu.",
                    code="device-unavailable",
                )
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        if device.type == "cuda" and "OMP_NUM_THREADS" not in os.environ:
            # The CPU only prepares the work of the GPU. Its threads would wait for each other and
            # for the cores of the loader workers: with 16, joining the waveforms of a step took
            # 51 of 255 ms.
            torch.set_num_threads(1)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it holds no data")
    except (RuntimeError, AssertionError, NotImplementedError) as cause:
        reason = str(cause).splitlines()[0]
        raise UserError(
            f"The device {name!r} cannot be used: {reason}.",
            where="--device",
            fix="Use auto, cpu, cuda or cuda:<number>.",
            code="device-unavailable",
        ) from cause
    return device


def use_tf32(device: torch.device) -> None:
    """Let matrix products round their float32 inputs to TF32.

    Raises:
        UserError: the device has no units for it.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(
            f"The device {device} has no TF32.",
            where="--precision tf32",
            fix="Use fp32 or bf16, or a GPU of the Ampere generation or later.",
            code="device-unavailable",
        )
    torch.set_float32_matmul_precision("high")
