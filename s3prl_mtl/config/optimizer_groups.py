"""`optimizer.groups`: settings of the optimizer for parts of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_mtl.config.checks import TYPE_NAMES, check_value
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.registry.plugins import discover_tasks
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS, Packages, find_in_run

ENCODER, FEATURIZER, HEADS = PARTS = ("encoder", "featurizer", "heads")
"""The keys of `optimizer.groups` beside the names of tasks."""

RULES: dict[str, tuple[type, dict[str, float]]] = {
    "lr": (float, {"at_least": 0}),
    "weight_decay": (float, {"at_least": 0}),
    "num_warmup_steps": (int, {"at_least": 0}),
    "layer_decay": (float, {"above": 0, "at_most": 1}),
}
"""Type and range of each setting of a group."""

LINEAR = "linear_schedule_with_warmup"
ONE_RATE = ("OneCycleLR", "CyclicLR")
"""Schedules that set the rates themselves, the same for all groups."""


def merge_groups(
    before: Mapping[str, Any], groups: Any, optimizer: Sequence[str], origin: str
) -> dict[str, Any]:
    """Merge the groups of a layer over those of earlier layers.

    Args:
        before: groups of earlier layers.
        groups: of the layer; None removes all groups.
        optimizer: the settings of the optimizer.
        origin: the layer, for errors.

    Raises:
        UserError: a key, type or range is wrong. `named_parts` checks the names of the parts.
    """
    if groups is None:
        return {}
    merged = dict(before)
    for part, own in _mapping(groups, "optimizer.groups", origin).items():
        place = f"optimizer.groups.{part}"
        known = [name for name in RULES if name in optimizer or name == "num_warmup_steps"]
        known += ["layer_decay"] if part == ENCODER else []
        for key, value in _mapping(own, place, origin).items():
            _check_setting(f"{place}.{key}", key, value, known, origin)
        merged[part] = {**merged.get(part, {}), **own}
    return merged


def named_parts(config: Mapping[str, Any], packages: Packages) -> dict[str, Any]:
    """The groups of a merged config, tasks by their names in the run.

    Installed tasks that the run does not have are allowed, as their blocks are.

    Args:
        config: merged.
        packages: of the tasks of the run, and of the run that it resumes.

    Raises:
        UserError: an unknown part, or settings that the schedule does not have.
    """
    schedule = config["scheduler"]
    installed = {*BUILT_IN_TASKS, *discover_tasks()}
    named: dict[str, Any] = {}
    for part, own in config["optimizer"].get("groups", {}).items():
        where = f"optimizer.groups.{part}"
        name = part if part in PARTS else find_in_run(part, packages)
        if name is None and part not in installed:
            raise UserError(
                f"The run has no part {part!r}.",
                where=where,
                fix=nearest(part, [*PARTS, *packages]),
                code="unknown-name",
            )
        if {"lr", "layer_decay"} & own.keys() and schedule and schedule["name"] in ONE_RATE:
            raise UserError(
                f"{schedule['name']} sets one rate for all parts.",
                where=f"{where} and scheduler.name",
                fix=f"Choose another schedule, such as {LINEAR}.",
                code="conflicting-options",
            )
        if "num_warmup_steps" in own and (not schedule or schedule["name"] != LINEAR):
            raise UserError(
                f"Of the schedules, only {LINEAR} has a warm-up for each part.",
                where=f"{where}.num_warmup_steps",
                fix=f"Leave it out, or set scheduler.name to {LINEAR}.",
                code="conflicting-options",
            )
        named[name or part] = own
    return named


def settings_of(part: str, groups: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a part: `encoder`, `featurizer`, or a head by the name of its task."""
    shared = {} if part in (ENCODER, FEATURIZER) else groups.get(HEADS, {})
    return {**shared, **groups.get(part, {})}


def _mapping(value: Any, key: str, origin: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise UserError(
        f"{key} must be a mapping, not {value!r}.", where=f"{key} in {origin}", code="wrong-type"
    )


def _check_setting(full: str, key: str, value: Any, known: list[str], origin: str) -> None:
    where = f"{full} in {origin}"
    if key not in known:
        raise UserError(
            f"Unknown key {full!r}.", where=where, fix=nearest(str(key), known), code="unknown-key"
        )
    kind, rules = RULES[key]
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise UserError(
            f"{full} must be {TYPE_NAMES[kind]}, not {value!r}.",
            where=where,
            code="wrong-type",
        )
    check_value(full, value, rules, origin)
