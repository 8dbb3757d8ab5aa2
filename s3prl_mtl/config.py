"""From defaults, config files and overrides to one checked config.

The layers, each over the one before: `default.yaml`, the `config.yaml` of every task, the files
of `-c`, the flags of the command line, `-o`. A key that no default has, or a value of another
type than the default's, is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s3prl_mtl.branch.config import translate
from s3prl_mtl.config_values import check_values
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.optim import optimizer_settings, scheduler_settings
from s3prl_mtl.plugins import discover_tasks, task_defaults
from s3prl_mtl.s3prl_tasks.block import block_defaults, chosen_blocks
from s3prl_mtl.s3prl_tasks.word import is_expert
from s3prl_mtl.task_words import (
    BUILT_IN_TASKS,
    Packages,
    blocks_under_names,
    choose,
    packages_of,
    split_words,
    stated_packages,
)
from s3prl_mtl.yaml_files import read_yaml

Config = dict[str, Any]
"""A merged, checked and resolved config: plain mappings, lists and scalars."""

DEFAULT_PATH = Path(__file__).with_name("default.yaml")

TASK_SETTINGS: Config = {
    "package": None,
    "train_split": "train",
    "dev_splits": None,
    "test_splits": None,
    "downstream_expert": {},
}
"""What a task's block may hold beside the settings of its own `config.yaml`.

`package` is the distribution whose task it is. A block may choose it; in the config of a run it is
always there, so that the run goes on with the same task whatever is installed later.
"""

# The arguments of the command line that `-o args.NAME=...` may set, and their keys.
ARGUMENT_KEYS = {
    "upstream": "upstream.name",
    "upstream_ckpt": "upstream.ckpt",
    "upstream_model_config": "upstream.config",
    "upstream_feature_selection": "upstream.feature_selection",
    "freeze_upstream": "upstream.freeze",
    "downstream": "downstream",
    "data": "data",
    "cache_dir": "cache_dir",
    "seed": "seed",
    "device": "device",
    "precision": "precision",
    "init_ckpt": "init_ckpt",
    "init_upstream_ckpt": "init_upstream_ckpt",
    "steps": "runner.total_steps",
    "parallel": "distributed.parallel",
    "placement": "distributed.placement",
}

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


def parse_tasks(text: str, flag: str = "-d") -> list[str]:
    """The task names of a flag: separated by commas; `all` is every task of this distribution.

    Raises:
        UserError: there is none, or a word is that of no task or of several.
    """
    return list(choose(split_words(text, flag), {}, {}))


def build_config(
    files: Sequence[str | Path] = (),
    flags: Mapping[str, Any] | None = None,
    overrides: str | None = None,
    base: Mapping[str, Any] | None = None,
) -> Config:
    """The config of a run, checked; references such as `${data}` are still in it.

    It is kept like this in `config.yaml` and in checkpoints, so that a run whose corpora have
    moved can be told with `--data`. :func:`resolve` fills the references in.

    Args:
        files: YAML files, the later over the earlier.
        flags: values by dotted key, such as `{"runner.total_steps": 40}`; the last layer that
            has `downstream` says which tasks are trained.
        overrides: the text of `-o`: `key=value` pairs separated by `,,`.
        base: the config of an earlier run, which takes the place of the defaults' values.

    Raises:
        UserError: an unknown key, a value of the wrong type, a file that is not there, a path
            that needs `--data` while it is not set.
    """
    layers: list[tuple[Config, str]] = []
    if base is not None:
        layers.append((dict(base), "the config of the run"))
    layers += [(translate(read_yaml(path, "-c"), path), str(path)) for path in files]
    for key, value in (flags or {}).items():
        layers.append((_nested(key, value), f"the command line ({key})"))
    layers += _parse_overrides(overrides)

    words: list[str] = []
    for layer, origin in reversed(layers):
        words = words or _words_of(layer, origin)
    if not words:
        raise UserError("No task is named.", where="-d", fix="For example: -d asr,ks or -d all.")
    held = packages_of(base, base.get("downstream") or ()) if base is not None else {}
    packages = choose(words, held, stated_packages(layers))
    layers = blocks_under_names(layers, packages)

    # A word such as s3prl:/path/to/folder is a name and a part of the block that goes by it.
    chosen, blocks = chosen_blocks(list(packages))
    if blocks:
        layers.append((dict(blocks), "-d"))

    # A file may hold the blocks of tasks that this run leaves out: they are checked all the same.
    defaults = read_yaml(DEFAULT_PATH, "defaults")
    others = []
    for task in sorted(_tasks_left_out(layers) - set(chosen) - set(defaults)):
        try:
            defaults[task] = _defaults_of(task, layers, base, stated_packages(layers))
            others.append(task)
        except UserError:
            # Not installed, broken, or two of them: no concern of a run without it.
            layers = [
                ({key: value for key, value in layer.items() if key != task}, origin)
                for layer, origin in layers
            ]
    for task in chosen:
        defaults[task] = _defaults_of(task, layers, base, packages)
    merged: Any = OmegaConf.create(defaults)
    for layer, origin in layers:
        for section, settings_of in OPEN_SECTIONS.items():
            if merged[section] is None and isinstance(layer.get(section), dict):
                # Switched off by a layer before this one, and on again: from its defaults.
                merged[section] = defaults[section]
            merged = _rename(merged, layer, section)
            if isinstance(layer.get(section), dict):
                name = str(layer[section].get("name", (merged[section] or {}).get("name")))
                _check_section(layer[section], section, name, settings_of(name), origin)
        _check(layer, defaults, "", origin)
        merged = OmegaConf.merge(merged, layer)
    for task in others:
        del merged[task]
    for task in filter(is_expert, chosen):
        # As the word or the layers said, the path now absolute.
        for key in ("folder", "config"):
            merged[task][key] = defaults[task][key]
    for task in chosen:
        if not is_expert(task):
            merged[task]["package"] = packages[task]
    merged["downstream"] = chosen
    _fix_paths(merged)
    _require_data_folder(merged, chosen)
    config = OmegaConf.to_container(merged)
    assert isinstance(config, dict)
    plain: Config = {str(key): value for key, value in config.items()}
    check_values(resolve(plain))
    return plain


def _defaults_of(
    task: str,
    layers: Sequence[tuple[Config, str]],
    base: Mapping[str, Any] | None,
    packages: Packages,
) -> Config:
    """The block of a task before any layer is merged into it."""
    if is_expert(task):
        return block_defaults(task, [layer for layer, _ in layers], base)
    return {**TASK_SETTINGS, **task_defaults(task, packages.get(task))}


def _tasks_left_out(layers: Sequence[tuple[Config, str]]) -> set[str]:
    """The names in the layers that are those of tasks: installed ones, or ones they list."""
    known = set(BUILT_IN_TASKS) | set(stated_packages(layers))
    for name, plugin in discover_tasks().items():
        plain = name.removeprefix(f"{plugin.package}:")
        known |= {plain, f"{plugin.package}:{plain}"}
    for layer, _ in layers:
        listed = layer.get("downstream")
        if isinstance(listed, list):
            known |= {str(task) for task in listed}
        known |= {key for key in layer if is_expert(key)}
    return known & {key for layer, _ in layers for key in layer}


def resolve(config: Mapping[str, Any]) -> Config:
    """The config with its references filled in; one without any comes back as it is.

    Raises:
        UserError: a reference names nothing.
    """
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True)
    except OmegaConfBaseException as cause:
        reason = " ".join(str(cause).split())
        raise UserError(f"The config does not resolve: {reason}.", where="config") from cause
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _fix_paths(merged: Any) -> None:
    """Make paths absolute: a run may be resumed or evaluated from another folder."""
    for key in PATH_KEYS:
        try:
            path = OmegaConf.select(merged, key)
        except OmegaConfBaseException as cause:
            reason = " ".join(str(cause).split())
            raise UserError(f"{key} does not resolve: {reason}.", where="config") from cause
        if path:
            OmegaConf.update(merged, key, os.path.abspath(os.path.expanduser(path)))


def _words_of(layer: Mapping[str, Any], origin: str) -> list[str]:
    """The words for tasks of a layer; none if it says nothing of them."""
    tasks = layer.get("downstream") or []
    if isinstance(tasks, str):
        return split_words(tasks)
    if not isinstance(tasks, list):
        raise UserError("`downstream` is a list of tasks.", where=origin)
    return split_words(",".join(str(task) for task in tasks)) if tasks else []


def _parse_overrides(text: str | None) -> list[tuple[Config, str]]:
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
            )
        if key.startswith("args."):
            argument = key.removeprefix("args.")
            if argument not in ARGUMENT_KEYS:
                raise UserError(
                    f"There is no argument {argument!r}.",
                    where=f"-o {pair}",
                    fix=nearest(argument, list(ARGUMENT_KEYS)),
                )
            key = ARGUMENT_KEYS[argument]
        try:
            parsed = OmegaConf.to_container(
                OmegaConf.from_dotlist([f"{key.removeprefix('config.')}={value}"])
            )
        except (yaml.YAMLError, OmegaConfBaseException) as cause:
            raise UserError(f"{pair!r} cannot be read: {cause}.", where="-o") from cause
        assert isinstance(parsed, dict)
        layers.append(({str(name): entry for name, entry in parsed.items()}, f"-o {pair}"))
    return layers


def _nested(dotted: str, value: Any) -> Config:
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def _rename(merged: Any, layer: Config, section: str) -> Any:
    """Empty a section whose `name` the layer changes, but for its rate.

    Another optimizer or scheduler takes other settings than the one before it.
    """
    values = layer.get(section)
    if not isinstance(values, dict) or "name" not in values:
        return merged
    current = merged.get(section) or {}
    if values["name"] != current.get("name"):
        merged[section] = {"lr": current["lr"]} if "lr" in current else {}
    return merged


def _check_section(
    values: Mapping[str, Any], section: str, name: str, allowed: list[str], origin: str
) -> None:
    """A section whose settings are those of the class that it names."""
    for key in values:
        if key not in ("name", *allowed):
            raise UserError(
                f"{name} has no setting {key!r}.",
                where=f"{section}.{key} in {origin}",
                fix=nearest(str(key), allowed),
            )


def _check(values: Mapping[str, Any], defaults: Config, path: str, origin: str) -> None:
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
                _check(value, default, full, origin)
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


def _require_data_folder(merged: Any, tasks: Sequence[str]) -> None:
    if merged.get("data"):
        return
    needing = [task for task in tasks if _mentions_data(OmegaConf.to_container(merged[task]))]
    if needing:
        raise UserError(
            f"No data folder is set, and the corpora of {', '.join(needing)} are looked for there.",
            fix="Pass --data DIR or set SUPERB_DATA, or give each task its path "
            "(`downstream_expert.datarc` in its block of the config).",
        )


def _mentions_data(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_mentions_data(entry) for entry in value.values())
    if isinstance(value, list):
        return any(_mentions_data(entry) for entry in value)
    return isinstance(value, str) and "${data}" in value
