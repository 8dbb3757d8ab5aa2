"""Parse `-o`, `downstream` and flags into layers of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.registry.task_names import split_specs

# The flags that change settings, with the keys of these: `--NAME`, or `-o args.NAME=...`.
ARGUMENT_KEYS = {
    "upstream": "upstream.name",
    "upstream_ckpt": "upstream.ckpt",
    "upstream_model_config": "upstream.config",
    "upstream_feature_selection": "upstream.feature_selection",
    "freeze_upstream": "upstream.freeze",
    "trust_remote_code": "upstream.trust_remote_code",
    "downstream": "downstream",
    "data": "data",
    "cache_dir": "cache_dir",
    "seed": "seed",
    "device": "device",
    "precision": "precision",
    "balancer": "balancer",
    "init_ckpt": "init_ckpt",
    "init_heads_only": "init_heads_only",
    "init_upstream_ckpt": "init_upstream_ckpt",
    "steps": "runner.total_steps",
    "unfreeze_after": "runner.unfreeze_after",
    "checkpoint_activations": "runner.checkpoint_activations",
    "max_pass_seconds": "runner.max_pass_seconds",
    "sampling": "runner.sampling",
    "num_workers": "runner.num_workers",
    "log_conflicts": "runner.log_conflicts",
    "track": "runner.track",
    "parallel": "distributed.parallel",
    "placement": "distributed.placement",
}


def task_specs(layer: Mapping[str, Any], origin: str) -> list[str]:
    """The task specs in `downstream` of a layer; empty if absent.

    Raises:
        UserError: `downstream` is not a list.
    """
    tasks = layer.get("downstream") or []
    if isinstance(tasks, str):
        return split_specs(tasks)
    if not isinstance(tasks, list):
        raise UserError("`downstream` must be a list of tasks.", where=origin, code="wrong-type")
    return split_specs(",".join(str(task) for task in tasks)) if tasks else []


def parse_overrides(text: str | None) -> list[tuple[dict[str, Any], str]]:
    """Parse the text of `-o` into layers, each with its origin.

    Raises:
        UserError: not of the form `key=value`, or an unknown argument.
    """
    layers = []
    for pair in (text or "").split(",,"):
        if not pair.strip():
            continue
        key, equals, value = pair.strip().partition("=")
        if not equals:
            raise UserError(
                f"{pair!r} is not of the form key=value.",
                where="-o",
                fix='For example: -o "config.optimizer.lr=1e-4,,args.seed=1".',
                code="invalid-value",
            )
        if key.startswith("args."):
            argument = key.removeprefix("args.")
            if argument not in ARGUMENT_KEYS:
                raise UserError(
                    f"Unknown argument {argument!r}.",
                    where=f"-o {pair}",
                    fix=nearest(argument, list(ARGUMENT_KEYS)),
                    code="unknown-key",
                )
            key = ARGUMENT_KEYS[argument]
        try:
            parsed = OmegaConf.to_container(
                OmegaConf.from_dotlist([f"{key.removeprefix('config.')}={value}"])
            )
        except (yaml.YAMLError, OmegaConfBaseException) as cause:
            raise UserError(
                f"{pair!r} cannot be read: {cause}.", where="-o", code="invalid-value"
            ) from cause
        assert isinstance(parsed, dict)
        layers.append(({str(name): entry for name, entry in parsed.items()}, f"-o {pair}"))
    return layers


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """A layer with one value, at a dotted key."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value
