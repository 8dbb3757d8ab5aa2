"""From defaults, config files and overrides to one checked config.

The layers, each over the one before: `default.yaml`, the `config.yaml` of every task, the files
of `-c`, the flags of the command line, `-o`. A key that no default has, or a value of another
type than the default's, is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s3prl_mtl.config.keys import OPEN_SECTIONS, PATH_KEYS, check_keys, check_section
from s3prl_mtl.config.layers import nested, parse_overrides, words_of
from s3prl_mtl.config.values import check_values
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import Remarks
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.mtl_branch.config import translate
from s3prl_mtl.mtl_branch.corpora import look_in
from s3prl_mtl.registry.plugins import discover_tasks, task_defaults
from s3prl_mtl.registry.task_names import (
    BUILT_IN_TASKS,
    Packages,
    choose_tasks,
    rename_blocks,
    split_specs,
    stated_packages,
    task_packages,
)
from s3prl_mtl.s3prl_compat.settings import block_defaults, check_blocks, parse_specs
from s3prl_mtl.s3prl_compat.task_spec import is_s3prl_task

Config = dict[str, Any]
"""A merged, checked and resolved config: plain mappings, lists and scalars."""

Layer = tuple[Config, str]
"""A layer, and what it is from."""

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


def parse_tasks(text: str, flag: str = "-d") -> list[str]:
    """The task names of a flag: separated by commas; `all` is every task of this distribution.

    Raises:
        UserError: there is none, or a word is that of no task or of several.
    """
    return list(choose_tasks(split_specs(text, flag), {}, {}))


def build_config(
    files: Sequence[str | Path] = (),
    flags: Mapping[str, Any] | None = None,
    overrides: str | None = None,
    base: Mapping[str, Any] | None = None,
    remarks: Remarks | None = None,
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
        remarks: take what is done otherwise than the files say, for the log of the run. Without
            them it is logged at once.

    Raises:
        UserError: an unknown key, a value of the wrong type, a file that is not there, a path
            that needs `--data` while it is not set.
    """
    if remarks is None:
        with Remarks() as said_at_once:
            return build_config(files, flags, overrides, base, said_at_once)
    read = [(read_yaml(path, "-c"), path) for path in files]
    told: list[Layer] = [
        (nested(key, value), f"the command line ({key})") for key, value in (flags or {}).items()
    ]
    told += parse_overrides(overrides)
    layers: list[Layer] = []
    # The branch's files have their paths written out, and may come from another machine.
    folder = _data_folder([base or {}, *(layer for layer, _ in [*read, *told])])
    if base is not None:
        whole = "data" in base
        origin = "The config of the checkpoint"
        own = dict(base) if whole else look_in(folder, base, origin, remarks)
        layers.append((own, "the config of the run"))
    layers += [(translate(values, path, remarks, folder), str(path)) for values, path in read]
    layers += told

    words: list[str] = []
    for layer, origin in reversed(layers):
        words = words or words_of(layer, origin)
    if not words:
        raise UserError("No task is named.", where="-d", fix="For example: -d asr,ks or -d all.")
    held = task_packages(base, base.get("downstream") or ()) if base is not None else {}
    packages = choose_tasks(words, held, stated_packages(layers))
    layers = rename_blocks(layers, packages)

    # A word such as s3prl:/path/to/folder is a name and a part of the block that goes by it.
    chosen, blocks = parse_specs(list(packages))
    if blocks:
        layers.append((dict(blocks), "-d"))

    defaults = read_yaml(DEFAULT_PATH, "defaults")
    settings = set(defaults)
    for task in chosen:
        defaults[task] = _defaults_of(task, layers, base, packages, remarks)
    check_blocks(told, chosen)
    layers, others = _blocks_left_out(layers, base, {*chosen, *settings}, remarks)
    defaults |= others
    merged = _merge(defaults, layers)
    for task in others:
        del merged[task]
    for task in chosen:
        if is_s3prl_task(task):
            # As the word or the layers said, the path now absolute.
            for key in ("folder", "config"):
                merged[task][key] = defaults[task][key]
        else:
            merged[task]["package"] = packages[task]
    merged["downstream"] = chosen
    _fix_paths(merged)
    _require_data_folder(merged, chosen)
    config = OmegaConf.to_container(merged)
    assert isinstance(config, dict)
    plain: Config = {str(key): value for key, value in config.items()}
    check_values(resolve(plain))
    return plain


def _merge(defaults: Config, layers: Sequence[Layer]) -> Any:
    """The layers over the defaults, each checked against them."""
    merged: Any = OmegaConf.create(defaults)
    for layer, origin in layers:
        for section, settings_of in OPEN_SECTIONS.items():
            if merged[section] is None and isinstance(layer.get(section), dict):
                # Switched off by a layer before this one, and on again: from its defaults.
                merged[section] = defaults[section]
            merged = _rename(merged, layer, section)
            if isinstance(layer.get(section), dict):
                name = str(layer[section].get("name", (merged[section] or {}).get("name")))
                check_section(layer[section], section, name, settings_of(name), origin)
        check_keys(layer, defaults, "", origin)
        merged = OmegaConf.merge(merged, layer)
    return merged


def _blocks_left_out(
    layers: list[Layer], base: Mapping[str, Any] | None, others: Set[str], remarks: Remarks
) -> tuple[list[Layer], dict[str, Config]]:
    """The layers without the blocks that nothing can check, and the defaults of those it can.

    A file may hold the blocks of tasks that this run leaves out: they are checked all the same.
    What is not installed, is broken, or is that of several packages is no concern of this run.

    Args:
        layers: of the config.
        base: the config of the run that goes on.
        others: the keys that are no such blocks.
        remarks: take the blocks that are left out, with the reasons.
    """
    stated = stated_packages(layers)
    defaults: dict[str, Config] = {}
    for task in sorted(_tasks_left_out(layers, stated) - others):
        try:
            defaults[task] = _defaults_of(task, layers, base, stated)
        except UserError as reason:
            remarks.add(f"The block {task!r} is left out, and its keys are not checked. {reason}")
            layers = [
                ({key: value for key, value in layer.items() if key != task}, origin)
                for layer, origin in layers
            ]
    return layers, defaults


def _defaults_of(
    task: str,
    layers: Sequence[Layer],
    base: Mapping[str, Any] | None,
    packages: Packages,
    remarks: Remarks | None = None,
) -> Config:
    """The block of a task before any layer is merged into it."""
    if is_s3prl_task(task):
        return block_defaults(task, [layer for layer, _ in layers], base, remarks)
    return {**TASK_SETTINGS, **task_defaults(task, packages.get(task))}


def _tasks_left_out(layers: Sequence[Layer], stated: Iterable[str]) -> set[str]:
    """The names in the layers that are those of tasks: installed ones, or ones they list."""
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


def _data_folder(layers: Sequence[Mapping[str, Any]]) -> str | None:
    """The folder of the corpora that the last of the layers names, or the environment."""
    named = [layer["data"] for layer in layers if "data" in layer]
    folder = named[-1] if named else os.environ.get("SUPERB_DATA")
    return None if folder is None else str(folder)


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
