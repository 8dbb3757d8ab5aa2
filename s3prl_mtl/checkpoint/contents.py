"""What of a run a checkpoint holds, and how the run takes it over again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from s3prl_mtl.checkpoint.compatibility import check_encoder
from s3prl_mtl.checkpoint.files import Checkpoint
from s3prl_mtl.config import Config
from s3prl_mtl.errors import UserError
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams import Featurizer, Upstream

_PREFIX = "model."
_SHOWN = 3
"""As many names of each kind are shown of weights that do not fit."""


def weights(
    config: Config,
    step: int,
    skips: Mapping[str, Any],
    upstream: Upstream,
    featurizer: Featurizer,
    heads: Mapping[str, dict[str, Any]],
) -> Checkpoint:
    """The weights of the encoder, the featurizer and the heads, and what rebuilds them.

    Args:
        heads: the `head_entry` of every task.
    """
    return {
        "Format": 2,
        "Step": step,
        "Tallies": dict(skips),
        "Config": config,
        "Upstream": upstream.s3prl_state_dict(),
        "UpstreamInfo": upstream.checkpoint_info,
        "Featurizer": featurizer.state_dict(),
        "Tasks": dict(heads),
    }


def head_entry(task: Task) -> dict[str, Any]:
    """What a checkpoint holds of a task to evaluate and use it."""
    return {
        "Downstream": on_cpu(task.expert.state_dict()),
        "Labels": getattr(task.expert, "labels", None),
        "Decision": getattr(task.expert, "decision", {}),
    }


def restore_weights(
    saved: Checkpoint, upstream: Upstream, featurizer: nn.Module, tasks: Iterable[Task]
) -> None:
    """Give modules the weights of a checkpoint, strictly.

    Raises:
        UserError: they do not fit.
    """
    where = "the checkpoint"
    if saved["Upstream"]:  # s3prl's branch leaves out an encoder that it did not train.
        encoder = encoder_weights(saved)
        check_encoder(encoder, upstream, where)
        load_strictly(upstream, encoder, "the encoder", where)
    load_strictly(featurizer, saved["Featurizer"], "the featurizer", where)
    for task in tasks:
        if not getattr(task.expert, "is_trained", True):
            continue
        head = saved["Tasks"][task.name]["Downstream"]
        load_strictly(task.expert, head, f"the head of {task.name}", where)
        if hasattr(task.expert, "decision"):
            task.expert.decision = dict(saved["Tasks"][task.name]["Decision"])


def encoder_weights(saved: Checkpoint) -> dict[str, Any]:
    """The encoder's parameters by their own names, without the prefix that s3prl may have."""
    named = dict(saved["Upstream"])
    bare = {name.removeprefix(_PREFIX): value for name, value in named.items()}
    # An expert may have parameters of the same name within its `model` and beside it.
    return bare if len(bare) == len(named) else named


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
        reason = _faults(module.state_dict(), weights) or str(cause).splitlines()[0]
        raise UserError(
            f"The weights do not fit {what}: {reason}.",
            where=where,
            fix="The upstream, its size and the task's settings must be as when they were saved.",
        ) from cause


def _faults(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What is missing, left over or of another shape; the first names of each, and how many."""
    shapes = {name: _shape(value) for name, value in wanted.items()}
    missing = [name for name in shapes if name not in found]
    left_over = [name for name in found if name not in shapes]
    others = [
        f"{name} of shape {_shape(found[name])} instead of {shape}"
        for name, shape in shapes.items()
        if name in found and _shape(found[name]) != shape
    ]
    kinds = {"missing": missing, "left over": left_over, "of another shape": others}
    return "; ".join(f"{kind}: {_first(names)}" for kind, names in kinds.items() if names)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def parameter_names(
    upstream: Upstream, featurizer: nn.Module, tasks: Iterable[Task]
) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by a name that is the same whoever holds them."""
    modules: dict[str, nn.Module] = {"Upstream": upstream, "Featurizer": featurizer}
    modules |= {f"Tasks/{task.name}": task.expert for task in tasks}
    return {
        f"{prefix}/{name}": parameter
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def optimizer_state(optimizer: Optimizer, names: Iterable[str]) -> dict[str, Any]:
    """An optimizer's settings, and its state of each parameter by name.

    Args:
        names: of the optimizer's parameters, in its order.
    """
    whole = optimizer.state_dict()
    (group,) = whole["param_groups"]
    settings = {key: value for key, value in group.items() if key != "params"}
    state = {name: whole["state"][i] for i, name in enumerate(names) if i in whole["state"]}
    return {"Settings": settings, "State": on_cpu(state)}


def load_optimizer_state(
    optimizer: Optimizer, names: Iterable[str], saved: Mapping[str, Any]
) -> None:
    """Take over what `optimizer_state` gave, as far as this optimizer has the parameters."""
    listed = list(names)
    state = {i: saved["State"][name] for i, name in enumerate(listed) if name in saved["State"]}
    group = {**saved["Settings"], "params": list(range(len(listed)))}
    optimizer.load_state_dict({"state": state, "param_groups": [group]})


def on_cpu(value: Any) -> Any:
    """The same nested value with its tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: on_cpu(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [on_cpu(entry) for entry in value]
    return value
