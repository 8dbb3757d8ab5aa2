"""One self-supervised speech encoder, tuned on many tasks at once."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3prl_mtl.distributed.world import World
    from s3prl_mtl.inference.loading import load
    from s3prl_mtl.inference.trained import TrainedRun
    from s3prl_mtl.registry.plugins import discover_tasks, load_task
    from s3prl_mtl.tasks.base import TaskExpert
    from s3prl_mtl.tasks.chunks import Chunk
    from s3prl_mtl.tasks.classification import ClassificationExpert
    from s3prl_mtl.tasks.ctc import TimedSymbol, TranscriptionExpert
    from s3prl_mtl.tasks.metric import Metric
    from s3prl_mtl.training.runner import MultiTaskRunner
    from s3prl_mtl.upstreams import (
        Featurizer,
        HiddenStates,
        Mask,
        MaskedUtterance,
        Upstream,
        load_upstream,
    )

__all__ = [
    "Chunk",
    "ClassificationExpert",
    "Featurizer",
    "HiddenStates",
    "Mask",
    "MaskedUtterance",
    "Metric",
    "MultiTaskRunner",
    "TaskExpert",
    "TimedSymbol",
    "TrainedRun",
    "TranscriptionExpert",
    "Upstream",
    "World",
    "discover_tasks",
    "load",
    "load_task",
    "load_upstream",
]

try:
    __version__ = version("s3prl-mtl")
except PackageNotFoundError:
    __version__ = "0+unknown"

_HOMES = {
    "Chunk": "tasks.chunks",
    "ClassificationExpert": "tasks.classification",
    "Featurizer": "upstreams",
    "HiddenStates": "upstreams",
    "Mask": "upstreams",
    "MaskedUtterance": "upstreams",
    "Metric": "tasks.metric",
    "MultiTaskRunner": "training.runner",
    "TaskExpert": "tasks.base",
    "TimedSymbol": "tasks.ctc",
    "TrainedRun": "inference.trained",
    "TranscriptionExpert": "tasks.ctc",
    "Upstream": "upstreams",
    "World": "distributed.world",
    "discover_tasks": "registry.plugins",
    "load": "inference.loading",
    "load_task": "registry.plugins",
    "load_upstream": "upstreams",
}


def __getattr__(name: str) -> Any:
    # Public names are imported when they are used: `s3prl-mtl --help` need not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
