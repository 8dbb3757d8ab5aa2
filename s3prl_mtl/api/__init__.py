"""The commands of the command line as functions: `from s3prl_mtl import api; api.train(...)`.

Arguments have the names of the flags. Functions raise a `UserError` for a mistake, never exit the
process, leave logging and signal handlers as they were, and print nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3prl_mtl.api.evaluation import evaluate
    from s3prl_mtl.api.results import RunResults, UnscoredSplits
    from s3prl_mtl.api.training import train

__all__ = ["RunResults", "UnscoredSplits", "evaluate", "train"]

_HOMES = {
    "RunResults": "results",
    "UnscoredSplits": "results",
    "evaluate": "evaluation",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    # Lazy, as in `s3prl_mtl`: help need not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
