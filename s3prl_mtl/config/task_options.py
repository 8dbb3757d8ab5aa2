"""Tasks that a sampling rule or the options of a balancer name: their names in the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s3prl_mtl.balancing.factory import balancer_settings
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.task_names import Packages, find_in_run


def named_sampling(rule: str, packages: Packages) -> str:
    """A sampling rule with the names that tasks have in the run.

    Args:
        rule: such as ``weights:asv=2``. Names that the run lacks are kept.
        packages: of the tasks of the run.

    Raises:
        UserError: several tasks of the run fit a name.
    """
    kind, _, rest = rule.partition(":")
    if "=" not in rest:
        return rule
    entries = []
    for entry in rest.split(","):
        spec, equals, number = entry.partition("=")
        name = find_in_run(spec.strip(), packages) if equals and spec.strip() else None
        entries.append(entry if name is None else f"{name}={number}")
    return f"{kind}:{','.join(entries)}"


def named_balancer(
    balancer: str, section: Mapping[str, Any], packages: Packages, origin: str
) -> dict[str, Any]:
    """The section of a balancer with the names that tasks have in the run.

    Args:
        balancer: its name.
        section: `balancer` of a layer. Names that the run lacks are kept.
        packages: of the tasks of the run.
        origin: the layer, for errors.

    Raises:
        UserError: several tasks of the run fit a name, or two names are of one task.
    """
    found = {
        key: _named(value, packages, f"balancer.{key} in {origin}")
        if isinstance(value, Mapping)
        else value
        for key, value in section.items()
    }
    if balancer_settings(balancer) is not None:
        return found
    name = {key: value for key, value in found.items() if key == "name"}
    options = {key: value for key, value in found.items() if key != "name"}
    return {**name, **_named(options, packages, f"balancer in {origin}")}


def _named(values: Mapping[str, Any], packages: Packages, where: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = find_in_run(str(key), packages) or str(key)
        if name in named:
            raise UserError(
                f"{key!r} is another name of {name!r}, which has a value.",
                where=where,
                fix="Give each task once.",
                code="conflicting-options",
            )
        named[name] = value
    return named
