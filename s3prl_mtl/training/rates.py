"""Learning rates by part of a run, and frozen layers of its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from s3prl_mtl.config import RunConfig
from s3prl_mtl.config.optimizer_groups import ENCODER, FEATURIZER, HEADS, settings_of
from s3prl_mtl.errors import UserError
from s3prl_mtl.training.run import Run
from s3prl_mtl.upstreams import Upstream

HIGH_RATE = 1e-3
"""Rates above this one have destroyed pre-trained encoders (s3prl issues 521 and 583)."""
TINY_UPSTREAM = "hubert_tiny"
"""An upstream that tolerates higher rates: it is trained at 4e-3 in the demo."""


def freeze_layers(upstream: Upstream, count: int) -> None:
    """Freeze the convolutional front end and the first layers of an encoder.

    Args:
        upstream: the encoder.
        count: Transformer layers to freeze; 0 for the front end alone.

    Raises:
        UserError: the upstream does not tell its layers, or has fewer.
    """
    where = "upstream.freeze_layers"
    layers = _layers(upstream, where)
    if count > max(layers.values()):
        raise UserError(
            f"The encoder has {max(layers.values())} layers, not {count}.",
            where=where,
            fix="Freeze fewer layers, or the whole encoder with --freeze_upstream.",
            code="invalid-value",
        )
    for name, parameter in upstream.named_parameters():
        if layers[name] <= count:
            parameter.requires_grad_(False)


def parameter_groups(run: Run, balancer: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """The parameter groups of `optimizer.groups`, the same ones on all ranks.

    The key `part` of a group is `encoder`, `featurizer`, `heads/<task>` or `balancer`. With
    `layer_decay` the encoder has a group for each of its L layers, `encoder/0` to `encoder/L`, at
    the rate of the encoder times `layer_decay ** (L - layer)`. Heads of other ranks are groups
    without parameters, because the state of the schedule refers to all groups.

    Args:
        run: the run.
        balancer: its learned parameters have the settings of `heads`.
        config: of the run.

    Raises:
        UserError: `layer_decay` with an upstream that does not tell its layers.
    """
    groups = config.optimizer["groups"]
    heads = {name: _trained(task.expert) for name, task in run.tasks.items()}
    parts = {
        **_encoder_parts(run.encoder.upstream, config),
        FEATURIZER: (_trained(run.encoder.featurizer), settings_of(FEATURIZER, groups)),
        **{f"{HEADS}/{n}": (heads.get(n, {}), settings_of(n, groups)) for n in run.names},
        "balancer": (_trained(balancer), settings_of("balancer", groups)),
    }
    return [
        {"part": part, "params": list(parameters.values()), **settings}
        for part, (parameters, settings) in parts.items()
        if parameters or part.startswith(f"{HEADS}/")
    ]


Part = tuple[dict[str, nn.Parameter], dict[str, Any]]
"""Trained parameters of a part by name, and its settings."""


def _encoder_parts(upstream: Upstream, config: RunConfig) -> dict[str, Part]:
    settings = settings_of(ENCODER, config.optimizer["groups"])
    decay = settings.pop("layer_decay", None)
    if "num_warmup_steps" in settings:
        settings["first_step"] = config.runner.unfreeze_after or 0
    trained = _trained(upstream)
    if decay is None:
        return {ENCODER: (trained, settings)}
    layers = _layers(upstream, "optimizer.groups.encoder.layer_decay")
    rate, last = settings.get("lr", config.optimizer["lr"]), max(layers.values())
    return {
        f"{ENCODER}/{layer}": (
            {name: parameter for name, parameter in trained.items() if layers[name] == layer},
            {**settings, "lr": rate * decay ** (last - layer)},
        )
        for layer in range(last + 1)
    }


def rates(optimizer: Optimizer) -> dict[str, float]:
    """The current rate of each part, heads by task; of the encoder that of its last layer.

    Without groups, the only rate under an empty name.
    """
    found = {}
    for group in optimizer.param_groups:
        part = group.get("part", "")
        name = ENCODER if part.startswith(f"{ENCODER}/") else part.removeprefix(f"{HEADS}/")
        found[name] = float(group["lr"])
    return found


def high_rate(config: RunConfig, upstream: Upstream) -> float | None:
    """The rate of a pre-trained encoder if it is above `HIGH_RATE` and the encoder is trained.

    None for `TINY_UPSTREAM`.
    """
    own = settings_of(ENCODER, config.optimizer.get("groups", {}))
    rate = own.get("lr", config.optimizer.get("lr", 0.0))
    tolerant = config.upstream.name == TINY_UPSTREAM
    return rate if not tolerant and _trained(upstream) and rate > HIGH_RATE else None


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _layers(upstream: Upstream, where: str) -> Mapping[str, int]:
    layers = upstream.parameter_layers()
    if layers is None:
        raise UserError(
            f"{type(upstream).__name__} does not tell which parameters are of which layer.",
            where=where,
            fix="Leave it out, or use HuBERT (-u hubert).",
            code="not-supported",
        )
    return layers
