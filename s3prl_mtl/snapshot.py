"""What of a run's modules a checkpoint holds, and how they take it over again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from s3prl_mtl.checkpoint import Checkpoint
from s3prl_mtl.config import Config
from s3prl_mtl.errors import UserError
from s3prl_mtl.task import Task
from s3prl_mtl.upstreams import Featurizer, Upstream

_PREFIX = "model."
"""s3prl keeps fairseq's model in an attribute of that name: what we save, it can load."""


def weights(
    config: Config,
    step: int,
    skipped_steps: int,
    upstream: Upstream,
    featurizer: Featurizer,
    tasks: Iterable[Task],
) -> Checkpoint:
    """The weights of the encoder, the featurizer and the heads, and what rebuilds them."""
    return {
        "Format": 1,
        "Step": step,
        "SkippedSteps": skipped_steps,
        "Config": config,
        "Upstream": {_PREFIX + name: value for name, value in upstream.state_dict().items()},
        "UpstreamInfo": upstream.checkpoint_info,
        "Featurizer": featurizer.state_dict(),
        "Tasks": {
            task.name: {
                "Downstream": task.expert.state_dict(),
                "Labels": getattr(task.expert, "labels", None),
                "Decision": getattr(task.expert, "decision", {}),
            }
            for task in tasks
        },
    }


def restore_weights(
    saved: Checkpoint, upstream: Upstream, featurizer: nn.Module, tasks: Iterable[Task]
) -> None:
    """Give modules the weights of a checkpoint, strictly.

    Raises:
        UserError: they do not fit.
    """
    where = "the checkpoint"
    load_strictly(upstream, encoder_weights(saved), "the encoder", where)
    load_strictly(featurizer, saved["Featurizer"], "the featurizer", where)
    for task in tasks:
        head = saved["Tasks"][task.name]["Downstream"]
        load_strictly(task.expert, head, f"the head of {task.name}", where)
        if hasattr(task.expert, "decision"):
            task.expert.decision = dict(saved["Tasks"][task.name]["Decision"])


def encoder_weights(saved: Checkpoint) -> dict[str, Any]:
    """The encoder's parameters by their own names, without s3prl's prefix."""
    return {name.removeprefix(_PREFIX): value for name, value in saved["Upstream"].items()}


def load_strictly(module: nn.Module, weights: Mapping[str, Any], what: str, where: str) -> None:
    """Load weights whose names and shapes must all fit.

    Args:
        what: the module, in words for the error.
        where: what gave the weights.

    Raises:
        UserError: names what does not fit.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as cause:
        faults = [line.strip() for line in str(cause).splitlines()[1:] if line.strip()]
        more = f" And {len(faults) - 3} more." if len(faults) > 3 else ""
        raise UserError(
            f"The weights do not fit {what}: {' '.join(faults[:3])}{more}",
            where=where,
            fix="The upstream, its size and the task's settings must be as when they were saved.",
        ) from cause
