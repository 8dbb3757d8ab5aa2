"""The blocks of tasks in a config: their defaults, their checks, those of tasks not in the run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s3prl_mtl.config.checks import TYPE_NAMES, check_value, type_name
from s3prl_mtl.config.schema import TaskConfig
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.registry.plugins import discover_tasks, task_defaults
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS, Packages, stated_packages
from s3prl_mtl.s3prl_compat.settings import block_defaults as s3prl_block_defaults
from s3prl_mtl.s3prl_compat.task_spec import is_s3prl_task

Config = dict[str, Any]
"""A config in files and checkpoints: plain values, with references such as `${data}`."""

Layer = tuple[Config, str]
"""A layer and its origin, for errors."""

TYPED = {entry.name for entry in fields(TaskConfig)} - {"downstream_expert"}
"""Settings of a block whose types the schema defines; the author of a task defines all others."""

SCHEMA = OmegaConf.structured(TaskConfig)
"""Made once, since OmegaConf takes milliseconds for it."""

FILES = ("manifests", "classes", "lexicon", "trials", "pseudo_labels", "dev_trials")
"""Settings in `downstream_expert.datarc` that are files, beside those that are below `${data}` by
default."""

DECODER_FILES = ("lm", "lexicon")
"""Settings in `downstream_expert.decoder` that are files."""

DATARC_RANGES: dict[str, dict[str, float]] = {
    "num_workers": {"at_least": 0},
    "train_batch_size": {"at_least": 1},
    "eval_batch_size": {"at_least": 1},
    "train_batch_seconds": {"above": 0},
    "eval_batch_seconds": {"above": 0},
}
"""Settings that most experts have in `downstream_expert.datarc`."""


def block_defaults(
    task: str,
    layers: Sequence[Layer],
    base: Mapping[str, Any] | None,
    packages: Packages,
    deferred: DeferredLog | None = None,
) -> Config:
    """The default block of a task.

    Raises:
        UserError: the task is not usable, or its own defaults have wrong types.
    """
    if is_s3prl_task(task):
        stated = s3prl_block_defaults(task, [layer for layer, _ in layers], base, deferred)
    else:
        stated = task_defaults(task, packages.get(task))
    check_task_settings(task, stated, f"the defaults of task {task}")
    absent = ("package", "fraction") if is_s3prl_task(task) else ("folder", "config")
    return {k: v for k, v in asdict(TaskConfig()).items() if k not in absent} | stated


def blocks_left_out(
    layers: list[Layer], base: Mapping[str, Any] | None, others: Set[str], deferred: DeferredLog
) -> tuple[list[Layer], dict[str, Config]]:
    """Handle blocks of tasks that are not in this run.

    They are checked like the others. Those of tasks that are not installed, are broken, or belong
    to several packages cannot be checked and are left out.

    Args:
        layers: all layers.
        base: the config of the run that is resumed.
        others: keys that are not such blocks.
        deferred: receives the blocks that are left out, with the reasons.

    Returns:
        The layers without the blocks that are left out, and the defaults of those to check.
    """
    stated = stated_packages(layers)
    defaults: dict[str, Config] = {}
    for task in sorted(_tasks_left_out(layers, stated) - others):
        try:
            defaults[task] = block_defaults(task, layers, base, stated)
        except UserError as reason:
            deferred.add(f"The block {task!r} is left out, and its keys are not checked. {reason}")
            layers = [
                ({key: value for key, value in layer.items() if key != task}, origin)
                for layer, origin in layers
            ]
    return layers, defaults


def _tasks_left_out(layers: Sequence[Layer], stated: Iterable[str]) -> set[str]:
    """The keys of the layers that are names of tasks, installed or listed in `downstream`."""
    known = {*BUILT_IN_TASKS, *stated}
    for name, plugin in discover_tasks().items():
        plain = name.removeprefix(f"{plugin.package}:")
        known |= {plain, f"{plugin.package}:{plain}"}
    for layer, _ in layers:
        listed = layer.get("downstream")
        if isinstance(listed, list):
            known |= {str(task) for task in listed}
        known |= {key for key in layer if is_s3prl_task(key)}
    return known & {key for layer, _ in layers for key in layer}


def check_block(task: str, values: Any, defaults: Config, origin: str) -> None:
    """Check the keys and types of a task's block in a layer.

    Args:
        task: its name.
        values: the block in the layer.
        defaults: the block that it is merged into.
        origin: the layer, for the error.

    Raises:
        UserError: names the key.
    """
    # The schema defines the types of the settings in it, the defaults those of all others.
    untyped = defaults | dict.fromkeys(TYPED & defaults.keys())
    _check_keys({task: values}, {task: untyped}, "", origin)
    check_task_settings(task, values, origin)
    for key in TYPED & values.keys():
        if values[key] is None and defaults[key] is not None:
            raise _wrong_type(task, key, None, origin)


def check_task_settings(task: str, block: Mapping[str, Any], origin: str) -> None:
    """Check the types of the settings that the schema defines.

    Raises:
        UserError: names the key.
    """
    for key in TYPED & block.keys():
        try:
            merged: Any = OmegaConf.to_container(OmegaConf.merge(SCHEMA, {key: block[key]}))
        except (OmegaConfBaseException, TypeError) as cause:
            raise _wrong_type(task, key, block[key], origin) from cause
        # OmegaConf turns numbers into strings.
        if merged[key] != block[key]:
            raise _wrong_type(task, key, block[key], origin)


def _wrong_type(task: str, key: str, value: Any, origin: str) -> UserError:
    kind = type_name(key, TaskConfig)
    is_list = kind == TYPE_NAMES[list]
    return UserError(
        f"{task}.{key} must be {kind}{' of strings' if is_list else ''}, not {value!r}.",
        where=f"{task}.{key} in {origin}",
        fix=f"Write it as a list: [{value}]." if is_list and isinstance(value, str) else None,
        code="wrong-type",
    )


def _check_keys(
    values: Mapping[str, Any], defaults: Mapping[str, Any], path: str, origin: str
) -> None:
    """Check that a mapping has no key that its defaults lack, and no value of another type.

    Args:
        values: a mapping in a layer.
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
                _check_keys(value, default, full, origin)
        elif not _same_type(value, default):
            raise UserError(
                f"{full} must be {TYPE_NAMES.get(type(default), 'a mapping')}, not {value!r}.",
                where=f"{full} in {origin}",
                fix=f"The default is {default!r}.",
                code="wrong-type",
            )


def check_task_values(task: str, block: Mapping[str, Any], origin: str) -> None:
    """Check the settings of a task's `datarc` that most experts share.

    Raises:
        UserError: names the key and the lowest value.
    """
    rules = {"above": 0, "at_most": 1}
    check_value(f"{task}.fraction", block.get("fraction"), rules, origin)
    datarc = (block.get("downstream_expert") or {}).get("datarc") or {}
    for key, limits in DATARC_RANGES.items():
        check_value(f"{task}.downstream_expert.datarc.{key}", datarc.get(key), limits, origin)


def uses_tables(block: Mapping[str, Any]) -> bool:
    """Whether a task reads tables (`datarc.manifests`) in place of a corpus."""
    datarc = (block.get("downstream_expert") or {}).get("datarc") or {}
    return datarc.get("manifests") is not None


def complete_datarc(task: str, block: Config, defaults: Mapping[str, Any]) -> None:
    """Make the paths of a task's corpus and decoder absolute; complete a block with tables.

    With tables, the one that trains is first, the default paths of the corpus are dropped, and the
    splits that begin with `dev` or `val`, or with `test`, are evaluated unless the block names
    others than its defaults do.

    Raises:
        UserError: there is no table to validate on.
    """
    has_tables = uses_tables(block)
    datarc = (block.get("downstream_expert") or {}).get("datarc") or {}
    own = (defaults.get("downstream_expert") or {}).get("datarc") or {}
    for key, value in datarc.items():
        is_file = key in FILES and (has_tables or task in BUILT_IN_TASKS)
        if is_file or mentions_data(own.get(key)):
            datarc[key] = _absolute_paths(value)
    decoder = (block.get("downstream_expert") or {}).get("decoder")
    if isinstance(decoder, dict) and task in BUILT_IN_TASKS:
        decoder |= {key: _absolute_paths(decoder[key]) for key in DECODER_FILES if key in decoder}
    if not has_tables:
        return
    for key, value in datarc.items():
        if value == own.get(key) and mentions_data(value):
            datarc[key] = None
    tables = datarc["manifests"]
    if not isinstance(tables, dict) or not tables:
        return  # The corpus refuses it.
    if block["train_split"] not in tables and block["train_split"] == defaults["train_split"]:
        block["train_split"] = next(iter(tables))
    first = block["train_split"]
    others = {split: path for split, path in tables.items() if split != first}
    datarc["manifests"] = {first: tables[first], **others} if first in tables else tables
    for key, beginnings in (("dev_splits", ("dev", "val")), ("test_splits", ("test",))):
        if block[key] == defaults[key]:
            block[key] = [split for split in others if str(split).startswith(beginnings)]
    if not block["dev_splits"]:
        raise UserError(
            f"{task} has no table to validate on, only {', '.join(map(repr, tables))}.",
            where=f"{task}.downstream_expert.datarc.manifests",
            fix="Add one whose name begins with `dev` or `val`, or name it in "
            f"`{task}.dev_splits`.",
            code="missing-option",
        )


def _absolute_paths(value: Any) -> Any:
    """A path, or the paths of a list or mapping, with `~` expanded; other values as they are.

    `hf:...` is the name of a data set.
    """
    if isinstance(value, dict):
        return {key: _absolute_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_absolute_paths(entry) for entry in value]
    if not isinstance(value, str) or not value or "${" in value or value.startswith("hf:"):
        return value
    return os.path.abspath(os.path.expanduser(value))


def mentions_data(value: Any) -> bool:
    """Whether a setting refers to the data folder."""
    if isinstance(value, dict):
        return any(mentions_data(entry) for entry in value.values())
    if isinstance(value, list):
        return any(mentions_data(entry) for entry in value)
    return isinstance(value, str) and "${data}" in value


def _same_type(value: Any, default: Any) -> bool:
    if default is None or any(isinstance(v, str) and v.startswith("${") for v in (value, default)):
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))
