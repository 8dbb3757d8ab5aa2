"""The versions of all relevant packages, for bug reports and for the folder of a run."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "torch",
    "torchaudio",
    "lhotse",
    "soundfile",
    "numpy",
    "omegaconf",
    "editdistance",
    "rapidfuzz",  # in place of editdistance on Python 3.13
    "s3prl",
    "transformers",
)


def versions() -> dict[str, str]:
    """Names and versions of the packages that results may depend on, s3prl-mtl first.

    Returns:
        ``cuda`` is the version that torch was built for, or `none`; ``gpus`` names the GPUs that
        torch can use.
    """
    import torch

    found = {"s3prl-mtl": _installed("s3prl-mtl"), "python": platform.python_version()}
    found |= {name: _installed(name) for name in PACKAGES}
    count = torch.cuda.device_count()
    gpus = [torch.cuda.get_device_name(index) for index in range(count)]
    return {
        **found,
        "cuda": torch.version.cuda or "none",
        "gpus": ", ".join(gpus) or "none",
        "platform": platform.platform(),
    }


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
