"""Errors of OmegaConf as errors of the user, and its missing checks: ranges and choices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from s3prl_mtl.config.schema import SETTINGS, Settings
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


def check_values(settings: Mapping[str, Any], origin: str) -> None:
    """Check the ranges and choices of a merged config.

    Args:
        settings: all sections; a value that is a reference (``${...}``) is not checked.
        origin: the layer that was merged last, for the error.

    Raises:
        UserError: names the key and the allowed values.
    """
    for key, _, rules in SETTINGS:
        value: Any = settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        check_value(key, value, rules, origin)


def check_value(key: str, value: Any, rules: Mapping[str, Any], origin: str) -> None:
    """Check one value; of another type than the rules expect it passes.

    Raises:
        UserError: names the key and the allowed values.
    """
    where = f"{key} in {origin}"
    check_finite(key, value, where)
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


def check_finite(key: str, value: Any, where: str) -> None:
    """Refuse numbers that are not finite, also in lists and mappings.

    Raises:
        UserError: names the key.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(
            f"{key} must be a finite number, not {value}.", where=where, code="invalid-value"
        )
    inner = value.values() if isinstance(value, Mapping) else value
    for entry in inner if isinstance(value, Mapping | list) else ():
        check_finite(key, entry, where)


def refusal(
    cause: OmegaConfBaseException, layer: Mapping[str, Any], origin: str, tasks: Sequence[str]
) -> UserError:
    """A `UserError` for an error of OmegaConf: key, origin, and the nearest key or right type."""
    key = str(cause.full_key or "")
    if not key:  # a scalar in place of a section: OmegaConf does not name it
        key = next(
            name
            for name, value in layer.items()
            if is_dataclass(get_type_hints(Settings).get(name)) and not isinstance(value, dict)
        )
    if isinstance(cause, ConfigKeyError):
        owner = cause.object_type if is_dataclass(cause.object_type) else Settings
        known = [entry.name for entry in fields(owner)]
        hint = nearest(str(cause.key), known if "." in key else [*known, *tasks])
        if "." not in key:
            hint += " (The blocks of tasks are at the top level, by task name.)"
        return UserError(
            f"Unknown key {key!r}.", where=f"{key} in {origin}", fix=hint, code="unknown-key"
        )
    value: Any = layer
    for part in re.split(r"[.\[]", key):
        value = value[int(part.rstrip("]"))] if isinstance(value, list) else value.get(part)
        if not isinstance(value, dict | list):
            break
    return UserError(
        f"{key} must be {type_name(key)}, not {value!r}.",
        where=f"{key} in {origin}",
        code="wrong-type",
    )


def type_name(key: str, schema: Any = Settings) -> str:
    """The type of a setting, as error messages name it."""
    kind = schema
    for part in re.split(r"[.\[]", key):
        if get_origin(kind) is list:
            kind = get_args(kind)[0]
            continue
        kind = get_type_hints(kind)[part]
        kind = next((entry for entry in get_args(kind) if isinstance(kind, UnionType)), kind)
    return TYPE_NAMES.get(get_origin(kind) or kind, "a mapping")
