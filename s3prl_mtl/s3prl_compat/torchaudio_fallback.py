"""Make ``import torchaudio`` work where its compiled extension does not load.

torchaudio's wheel on the registry is linked against CUDA, so beside a CPU-only torch it raises
``OSError`` on import, and then so do s3prl and transformers. torchaudio itself supports running
without its extension, which is what the stand-in says.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

from s3prl_mtl.errors import UserError

__all__ = ["ensure_torchaudio"]

logger = logging.getLogger(__name__)

EXTENSION = "torchaudio._extension"


def ensure_torchaudio() -> None:
    """Import torchaudio, without its compiled extension if that does not load.

    Call it before anything that imports torchaudio, s3prl or transformers.

    Raises:
        UserError: torchaudio is not installed.
    """
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
        ) from None
    except (OSError, ImportError, RuntimeError) as error:
        logger.debug("torchaudio's extension does not load: %s", error)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]  # What is left of the failed import.
    sys.modules[EXTENSION] = _stand_in()
    importlib.import_module("torchaudio")


def _stand_in() -> ModuleType:
    """The names of ``torchaudio._extension``, for an extension that is not available."""

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
