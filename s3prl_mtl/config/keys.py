"""Keys and types of a task's block, whose defaults are the `config.yaml` of its package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s3prl_mtl.errors import UserError, nearest


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
                f"{full} must be {_type_name(default)}, not {value!r}.",
                where=f"{full} in {origin}",
                fix=f"The default is {default!r}.",
                code="wrong-type",
            )


def _same_type(value: Any, default: Any) -> bool:
    if default is None or any(isinstance(v, str) and v.startswith("${") for v in (value, default)):
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _type_name(value: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "a mapping")
