"""Ranges and choices of settings, as the fields of the schema state them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from s3prl_mtl.config.schema import Settings
from s3prl_mtl.errors import UserError

DATARC_AT_LEAST = {"num_workers": 0, "train_batch_size": 1, "eval_batch_size": 1}
"""Settings that most experts have in `downstream_expert.datarc`."""


def check_values(settings: Mapping[str, Any], origin: str) -> None:
    """Check the ranges and choices of a merged config.

    Args:
        settings: all sections; a value that is a reference (``${...}``) is not checked.
        origin: the layer that was merged last, for the error.

    Raises:
        UserError: names the key and the allowed values.
    """
    for key, value, rules in _rules(settings, Settings, ""):
        _check(key, value, rules, origin)


def check_task_values(task: str, block: Mapping[str, Any], origin: str) -> None:
    """Check the numbers of a task's `datarc` that are common to all experts.

    Raises:
        UserError: names the key and the lowest value.
    """
    datarc = (block.get("downstream_expert") or {}).get("datarc") or {}
    for key, least in DATARC_AT_LEAST.items():
        _check(
            f"{task}.downstream_expert.datarc.{key}", datarc.get(key), {"at_least": least}, origin
        )


def _rules(
    values: Mapping[str, Any], schema: type, path: str
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Key, value and metadata of every field that is set."""
    types = get_type_hints(schema)
    for entry in fields(schema):
        value, key = values.get(entry.name), f"{path}{entry.name}"
        if isinstance(value, Mapping) and is_dataclass(types[entry.name]):
            yield from _rules(value, types[entry.name], f"{key}.")
        else:
            yield key, value, entry.metadata


def _check(key: str, value: Any, rules: Mapping[str, Any], origin: str) -> None:
    where = f"{key} in {origin}"
    choices = rules.get("one_of")
    if choices and isinstance(value, str) and not value.startswith("${") and value not in choices:
        raise UserError(
            f"{key} is {' or '.join(choices)}, not {value!r}.", where=where, code="invalid-value"
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    for rule, wrong in (
        ("at_least", lambda limit: value < limit),
        ("at_most", lambda limit: value > limit),
        ("above", lambda limit: value <= limit),
    ):
        if rule in rules and wrong(rules[rule]):
            raise UserError(
                f"{key} must be {rule.replace('_', ' ')} {rules[rule]}, not {value}.",
                where=where,
                code="invalid-value",
            )
