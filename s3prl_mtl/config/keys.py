"""Which keys a layer of a config may have, and of which types their values are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.optim.factory import optimizer_settings, scheduler_settings

# Settings that are paths of the user's, or null.
PATH_KEYS = (
    "data",
    "cache_dir",
    "upstream.ckpt",
    "upstream.config",
    "init_ckpt",
    "init_upstream_ckpt",
)

# Sections whose keys depend on another value in them, with the rule that lists them.
OPEN_SECTIONS = {"optimizer": optimizer_settings, "scheduler": scheduler_settings}
# Sections that null switches off.
OPTIONAL_SECTIONS = ("scheduler", "specaug")


def check_section(
    values: Mapping[str, Any], section: str, name: str, allowed: list[str], origin: str
) -> None:
    """A section whose settings are those of the class that it names.

    Args:
        values: of the section in a layer.
        section: its key.
        name: of the class.
        allowed: its settings.
        origin: what the layer is from.

    Raises:
        UserError: the class has no such setting.
    """
    for key in values:
        if key not in ("name", *allowed):
            raise UserError(
                f"{name} has no setting {key!r}.",
                where=f"{section}.{key} in {origin}",
                fix=nearest(str(key), allowed),
            )


def check_keys(
    values: Mapping[str, Any], defaults: Mapping[str, Any], path: str, origin: str
) -> None:
    """A layer has no key that the defaults lack, and no value of another type.

    Args:
        values: the layer, or a mapping in it.
        defaults: what it is over.
        path: the dotted key of the mapping; empty for the whole layer.
        origin: what the layer is from.

    Raises:
        UserError: names the key.
    """
    for key, value in values.items():
        full = f"{path}.{key}" if path else str(key)
        if path in OPEN_SECTIONS and key not in defaults:
            continue
        if key not in defaults:
            raise UserError(
                f"Unknown key {full!r}.",
                where=origin,
                fix=_suggest(str(key), path, list(defaults)),
            )
        default = defaults[key]
        if value is None and (default is None or full in OPTIONAL_SECTIONS):
            continue
        if isinstance(default, dict) and isinstance(value, Mapping):
            # An empty mapping among the defaults is open: the task itself checks what it gets.
            if default:
                check_keys(value, default, full, origin)
        elif full in PATH_KEYS and not isinstance(value, str):
            raise UserError(f"{full} must be a path, not {value!r}.", where=origin)
        elif not _same_type(value, default):
            raise UserError(
                f"{full} must be {_type_name(default)}, not {value!r}.",
                where=origin,
                fix=f"The default is {default!r}.",
            )


def _suggest(key: str, path: str, allowed: list[str]) -> str:
    hint = nearest(key, allowed)
    return hint if path else f"{hint} (The blocks of tasks stand at the top level, by task name.)"


def _same_type(value: Any, default: Any) -> bool:
    if default is None or (isinstance(default, str) and default.startswith("${")):
        return True
    if isinstance(value, str) and value.startswith("${"):
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _type_name(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return names.get(type(value), "a list" if isinstance(value, list) else "a mapping")
