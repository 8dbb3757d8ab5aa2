"""What the values of a config must be, beyond their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s3prl_mtl.errors import UserError

AT_LEAST: Mapping[str, int] = {
    "seed": 0,
    "runner.total_steps": 1,
    "runner.log_step": 1,
    "runner.eval_step": 1,
    "runner.save_step": 1,
    "runner.max_keep": 1,
    "runner.gradient_accumulate_steps": 1,
}
TASK_AT_LEAST: Mapping[str, int] = {
    "num_workers": 0,
    "train_batch_size": 1,
    "eval_batch_size": 1,
}
LARGEST_SEED = 2**63 - 1


def check_values(config: Mapping[str, Any]) -> None:
    """Refuse values that no run can be made of.

    Args:
        config: merged and resolved.

    Raises:
        UserError: names the key and what it may be.
    """
    if config["precision"] not in ("fp32", "bf16"):
        raise UserError(
            f"precision is fp32 or bf16, not {config['precision']!r}.", where="--precision"
        )
    if config["distributed"]["parallel"] not in ("data", "task"):
        raise UserError(
            "Processes share the work by data or by task, not by "
            f"{config['distributed']['parallel']!r}.",
            where="--parallel",
        )
    for key, least in AT_LEAST.items():
        value: Any = config
        for part in key.split("."):
            value = value[part]
        _at_least(key, value, least)
    if config["seed"] > LARGEST_SEED:
        raise UserError(f"seed must be below 2^63, not {config['seed']}.", where="--seed")
    if config["runner"]["gradient_clipping"] <= 0:
        raise UserError(
            "runner.gradient_clipping must be above 0.",
            where="config",
            fix="A large number, such as 1e9, never clips.",
        )
    for task in config["downstream"]:
        datarc = config[task]["downstream_expert"].get("datarc") or {}
        for key, least in TASK_AT_LEAST.items():
            if isinstance(datarc.get(key), int):
                _at_least(f"{task}.downstream_expert.datarc.{key}", datarc[key], least)


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{key} must be at least {least}, not {value}.", where="config")
