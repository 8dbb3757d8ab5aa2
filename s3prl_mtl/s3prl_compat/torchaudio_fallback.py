"""Import torchaudio, s3prl and transformers even if torchaudio's compiled extension does not load.

torchaudio's published wheel is linked against CUDA: with a CPU-only torch its import raises
``OSError``, and so do those of s3prl and transformers. torchaudio can run without its compiled
extension; if that does not load, a replacement reports it as unavailable.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

from s3prl_mtl.errors import UserError

__all__ = ["ensure_torchaudio"]

logger = logging.getLogger(__name__)

EXTENSION = "torchaudio._extension"


def ensure_torchaudio(*, required: bool = True) -> None:
    """Import torchaudio, without its compiled extension if that does not load.

    Call it before anything that imports torchaudio, s3prl or transformers.

    Args:
        required: raise an error if torchaudio is not installed; otherwise do nothing.

    Raises:
        UserError: torchaudio is required and not installed.
    """
    if not required and importlib.util.find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
        return
    except ModuleNotFoundError as error:
        if error.name != "torchaudio":
            raise
        raise UserError(
            "torchaudio is not installed.",
            where="this Python environment",
            fix="Install it with `pip install 's3prl-mtl[s3prl]'`.",
            code="missing-package",
        ) from None
    except (OSError, ImportError, RuntimeError) as error:
        logger.debug("torchaudio's extension does not load: %s", error)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]  # Left over from the failed import.
    sys.modules[EXTENSION] = _unavailable_extension()
    importlib.import_module("torchaudio")


def _unavailable_extension() -> ModuleType:
    """A replacement for ``torchaudio._extension`` that reports the extension as unavailable."""

    def fail_if_no_align(function: Callable[..., object]) -> Callable[..., object]:
        def refuse(*_arguments: object, **_settings: object) -> NoReturn:
            raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension.")

        return refuse

    def load_library(_name: str) -> bool:
        return False

    values: dict[str, object] = {
        "_IS_TORCHAUDIO_EXT_AVAILABLE": False,
        "_IS_ALIGN_AVAILABLE": False,
        "_check_cuda_version": lambda: None,
        "_load_lib": load_library,
        "fail_if_no_align": fail_if_no_align,
    }
    module = ModuleType(EXTENSION)
    module.__dict__.update(values)
    return module
