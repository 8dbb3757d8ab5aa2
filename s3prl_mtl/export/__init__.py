"""Export the encoder of a run to fairseq, transformers, s3prl and ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3prl_mtl.export.command import FORMATS, export

__all__ = ["FORMATS", "export"]


def __getattr__(name: str) -> Any:
    # Lazy: the command line checks a format (`formats`) before it imports torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from s3prl_mtl.export import command

    return getattr(command, name)
