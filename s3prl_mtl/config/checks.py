"""Checks beyond OmegaConf's: keys and types of task blocks, ranges and choices of all settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from s3prl_mtl.config.schema import Settings
from s3prl_mtl.errors import UserError, nearest

TYPE_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path",
    list: "a list",
    dict: "a mapping",
}
"""The types of settings, as error messages name them."""

DATARC_AT_LEAST = {"num_workers": 0, "train_batch_size": 1, "eval_batch_size": 1}
"""Settings that most experts have in `downstream_expert.datarc`."""


def check_block(
    values: Mapping[str, Any], defaults: Mapping[str, Any], path: str, origin: str
) -> None:
    """Check that a block has no key that its defaults lack, and no value of another type.

    Args:
        values: the block in a layer, or a mapping in it.
        defaults: the mapping that it is merged into. An empty one is open: the expert checks it.
        path: the dotted key of the mapping.
        origin: the layer, for the error.

    Raises:
        UserError: names the key.
    """
    for key, value in values.items():
        full = f"{path}.{key}" if path else str(key)
        if key not in defaults:
            raise UserError(
                f"Unknown key {full!r}.",
                where=f"{full} in {origin}",
                fix=nearest(str(key), list(defaults)),
                code="unknown-key",
            )
        default = defaults[key]
        if isinstance(default, dict) and isinstance(value, Mapping):
            if default:
                check_block(value, default, full, origin)
        elif not _same_type(value, default):
            raise UserError(
                f"{full} must be {TYPE_NAMES.get(type(default), 'a mapping')}, not {value!r}.",
                where=f"{full} in {origin}",
                fix=f"The default is {default!r}.",
                code="wrong-type",
            )


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
    """Check the settings of a task's `datarc` that most experts share.

    Raises:
        UserError: names the key and the lowest value.
    """
    datarc = (block.get("downstream_expert") or {}).get("datarc") or {}
    for key, least in DATARC_AT_LEAST.items():
        _check(
            f"{task}.downstream_expert.datarc.{key}", datarc.get(key), {"at_least": least}, origin
        )


def _same_type(value: Any, default: Any) -> bool:
    if default is None or any(isinstance(v, str) and v.startswith("${") for v in (value, default)):
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


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
