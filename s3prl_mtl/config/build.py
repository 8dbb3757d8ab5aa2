"""Merge defaults, config files and overrides into one checked config.

The layers, each over the one before: `default.yaml`, the `config.yaml` of every task, the files
of `-c`, the flags of the command line, `-o`. `schema.py` defines the names and types of all
settings, the `config.yaml` of a task those of its block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from s3prl_mtl.balancing.factory import balancer_settings, parse_balancer
from s3prl_mtl.config.checks import check_finite, check_values, refusal
from s3prl_mtl.config.contradictions import (
    check_sampling,
    refuse_contradictions,
    refuse_different_runs,
    refuse_frozen_and_unfrozen,
    remarks_on_ignored,
    remarks_on_reach,
)
from s3prl_mtl.config.optimizer_groups import merge_groups, named_parts
from s3prl_mtl.config.overrides import nested, parse_overrides, task_specs
from s3prl_mtl.config.schema import PATHS, RunConfig, Settings, TaskConfig, with_lists
from s3prl_mtl.config.task_blocks import (
    Config,
    Layer,
    block_defaults,
    blocks_left_out,
    check_block,
    check_task_settings,
    check_task_values,
    complete_datarc,
    mentions_data,
)
from s3prl_mtl.config.task_options import named_balancer, named_sampling
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.mtl_branch.config import translate
from s3prl_mtl.mtl_branch.corpora import look_in
from s3prl_mtl.optim.factory import optimizer_settings, scheduler_settings
from s3prl_mtl.registry.task_names import (
    Packages,
    choose_tasks,
    rename_blocks,
    split_specs,
    stated_packages,
    task_packages,
)
from s3prl_mtl.s3prl_compat.settings import check_blocks, parse_specs
from s3prl_mtl.s3prl_compat.task_spec import is_s3prl_task
from s3prl_mtl.settings import find_settings

DEFAULT_PATH = Path(__file__).with_name("default.yaml")

CLASS_SETTINGS: dict[str, Callable[[str], list[str] | None]] = {
    "optimizer": optimizer_settings,
    "scheduler": scheduler_settings,
    "balancer": balancer_settings,
}
"""Sections with the arguments of the class that they name: {section: lists the arguments}."""


def parse_tasks(text: str, flag: str = "-d") -> list[str]:
    """The task names of a flag, separated by commas; `all` is every task of this distribution.

    Raises:
        UserError: no name, an unknown name, or one of several packages.
    """
    where = None if flag == "-d" else f"{flag} {text}"
    return list(choose_tasks(split_specs(text, flag), {}, {}, where))


def build_config(
    files: Sequence[str | Path] = (),
    flags: Mapping[str, Any] | None = None,
    overrides: str | None = None,
    base: Mapping[str, Any] | None = None,
    deferred: DeferredLog | None = None,
    trains: bool = True,
) -> Config:
    """Merge and check the config of a run; references such as `${data}` stay in it.

    `config.yaml` and checkpoints keep it in this form, so that `--data` still works for a run whose
    corpora have moved. :func:`resolve` fills the references in.

    Args:
        files: YAML files or names of packaged settings, the later over the earlier.
        flags: values by dotted key, such as `{"runner.total_steps": 40}`. The last layer with
            `downstream` decides which tasks are trained.
        overrides: the text of `-o`: `key=value` pairs separated by `,,`.
        base: the config of an earlier run, a layer over the defaults.
        deferred: receives warnings about the files, for the log of the run; None logs them
            at once.
        trains: the config is for training. An evaluation of some tasks of a run ignores settings
            such as a sampling rule that names the others.

    Raises:
        UserError: an unknown key, a value of the wrong type or range, a missing file, or a path
            that needs `--data` without it.
    """
    if deferred is None:
        with DeferredLog() as log:
            return build_config(files, flags, overrides, base, log, trains)
    read = [(read_yaml(path, "-c"), path) for path in map(find_settings, files)]
    typed: list[Layer] = [
        (nested(key, value), f"the command line ({key})") for key, value in (flags or {}).items()
    ]
    typed += parse_overrides(overrides)
    refuse_contradictions(typed)
    run_sections = {entry.name for entry in fields(Settings)} - {"downstream"}
    refuse_different_runs(read, run_sections)
    layers: list[Layer] = []
    # The branch's files contain absolute paths, possibly of another machine.
    folder = _data_folder([base or {}, *(layer for layer, _ in [*read, *typed])])
    if base is not None:
        whole = "data" in base
        origin = "The config of the checkpoint"
        own = dict(base) if whole else look_in(folder, base, origin, deferred)
        layers.append((own, "the config of the run"))
    layers += [(translate(values, path, deferred, folder), str(path)) for values, path in read]
    layers += typed

    specs: list[str] = []
    for layer, origin in reversed(layers):
        specs = specs or task_specs(layer, origin)
    if not specs:
        raise UserError(
            "No task is named.",
            where="-d",
            fix="For example: -d asr,ks or -d all.",
            code="missing-option",
        )
    held = task_packages(base, base.get("downstream") or ()) if base is not None else {}
    packages = choose_tasks(specs, held, stated_packages(layers))
    layers = rename_blocks(layers, packages)

    # `s3prl:/path/to/folder` gives both the name of a task and the `folder` of its block.
    chosen, blocks = parse_specs(list(packages))
    if blocks:
        layers.append((dict(blocks), "-d"))

    blocks_of = {task: block_defaults(task, layers, base, packages, deferred) for task in chosen}
    check_blocks(typed, chosen)
    for remark in remarks_on_reach(read, chosen, run_sections):
        deferred.add(remark)
    known = {*chosen, *run_sections, "downstream"}
    layers, others = blocks_left_out(layers, base, known, deferred)
    merged = _merge({**blocks_of, **others}, layers, {**held, **packages})
    for task in others:
        del merged[task]
    for task in chosen:
        if is_s3prl_task(task):
            # From the spec or the layers, as an absolute path.
            for key in ("folder", "config"):
                merged[task][key] = blocks_of[task][key]
        else:
            merged[task]["package"] = packages[task]
    merged["downstream"] = chosen
    rule = merged["runner"]["sampling"]
    merged["runner"]["sampling"] = named_sampling(rule, {**held, **packages})
    if "groups" in merged["optimizer"]:
        merged["optimizer"]["groups"] = named_parts(merged, {**held, **packages})
    for task in chosen:
        complete_datarc(task, merged[task], blocks_of[task])
    refuse_frozen_and_unfrozen(merged)
    if trains:
        for remark in remarks_on_ignored(merged):
            deferred.add(remark)
        check_sampling(merged)
    references = OmegaConf.create(merged)
    _make_absolute(merged, references)
    if not OmegaConf.select(references, "data"):
        _require_data_folder(merged, chosen)
    return merged


def _merge(blocks: Config, layers: Sequence[Layer], packages: Packages) -> Config:
    """Merge the layers over the defaults, checking each; plain values, references unresolved.

    Args:
        blocks: the default block of every task.
        layers: without blocks of other tasks.
        packages: of the tasks of the run, and of the run that it resumes.
    """
    defaults = read_yaml(DEFAULT_PATH, "defaults")
    # `unsafe_merge` changes its first argument; `merge` would copy the whole for each layer.
    settings: Any = OmegaConf.unsafe_merge(OmegaConf.structured(Settings), defaults)
    tasks: Any = {task: OmegaConf.create(block) for task, block in blocks.items()}
    for layer, origin in layers:
        # `downstream` is a list or a text, and decided already.
        own = with_lists(
            {key: value for key, value in layer.items() if key not in {*blocks, "downstream"}}
        )
        if isinstance(own.get("balancer"), str | dict):
            values = parse_balancer(own["balancer"], f"balancer in {origin}")
            name = values.get("name", settings["balancer"]["name"])
            own["balancer"] = named_balancer(str(name), values, packages, origin)
        for section, settings_of in CLASS_SETTINGS.items():
            own = _class_section(own, section, settings, defaults, settings_of, origin)
        if settings.specaug is None and isinstance(own.get("specaug"), dict):
            own["specaug"] = {**defaults["specaug"], **own["specaug"]}
        try:
            settings = OmegaConf.unsafe_merge(settings, own)
        except (ConfigKeyError, ValidationError) as cause:
            raise refusal(cause, own, origin, list(blocks)) from cause
        check_values(_plain(settings), origin)
        for task in blocks.keys() & layer.keys():
            check_block(task, layer[task], blocks[task], origin)
            tasks[task] = OmegaConf.unsafe_merge(tasks[task], layer[task])
            check_task_values(task, _plain(tasks[task]), origin)
    return {**_plain(settings), **{task: _plain(block) for task, block in tasks.items()}}


def _class_section(
    layer: Config,
    section: str,
    settings: Any,
    defaults: Config,
    settings_of: Callable[[str], list[str] | None],
    origin: str,
) -> Config:
    """Check and complete a layer's section for a class and its arguments.

    Another optimizer than before inherits `lr` and `groups`, any other class nothing. A section
    that an earlier layer switched off starts from the defaults.

    Raises:
        UserError: an unknown class, or an argument that it does not take.
    """
    values = layer.get(section)
    if not isinstance(values, dict):
        return layer
    current = defaults[section] if settings[section] is None else _plain(settings[section])
    name = str(values.get("name", current.get("name")))
    allowed = settings_of(name)
    if section == "optimizer" and "groups" in values:
        groups = merge_groups(current.get("groups", {}), values["groups"], allowed or [], origin)
        values = {**values, "groups": groups}
    for key, value in values.items():
        is_groups = (section, key) == ("optimizer", "groups")
        if allowed is not None and key not in ("name", *allowed) and not is_groups:
            raise UserError(
                f"{name} has no setting {key!r}.",
                where=f"{section}.{key} in {origin}",
                fix=nearest(str(key), allowed),
                code="unknown-key",
            )
        check_finite(f"{section}.{key}", value, f"{section}.{key} in {origin}")
        if key == "lr" and not isinstance(value, int | float):
            raise UserError(
                f"{section}.lr must be a number, not {value!r}.",
                where=f"{section}.lr in {origin}",
                code="wrong-type",
            )
    if name != current.get("name"):
        kept = ("lr", "groups") if section == "optimizer" else ()
        current = {key: value for key, value in current.items() if key in kept}
    OmegaConf.set_readonly(settings, False)
    settings[section] = {}
    return {**layer, section: {**current, **values}}


def _plain(node: Any) -> Config:
    """A config node as plain values, references unresolved."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return str(value) if isinstance(value, Path) else value

    whole = plain(OmegaConf.to_container(node))
    assert isinstance(whole, dict)
    return whole


def resolve_plain(config: Mapping[str, Any]) -> Config:
    """The config with its references filled in, also where it is not complete.

    Raises:
        UserError: a reference names nothing.
    """
    try:
        whole = OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True)
    except OmegaConfBaseException as cause:
        reason = " ".join(str(cause).split())
        raise UserError(
            f"The config does not resolve: {reason}.", where="config", code="invalid-value"
        ) from cause
    assert isinstance(whole, dict)
    return with_lists({str(key): value for key, value in whole.items()})


def resolve(config: Mapping[str, Any]) -> RunConfig:
    """The typed config, references filled in.

    Args:
        config: plain, as :func:`build_config`, files and checkpoints have it. A setting that a file
            of an earlier version lacks gets its default.

    Raises:
        UserError: a reference names nothing, a value is not of its type, or upstream, tasks or the
            block of a task are missing.
    """
    whole = resolve_plain(config)
    required = ["upstream", "downstream"]
    required += [str(name) for name in whole.get("downstream") or ()]
    missing = [name for name in required if name not in whole]
    if missing:
        raise UserError(
            f"The config lacks {', '.join(missing)}.",
            where=", ".join(missing),
            fix="Use a complete config, such as the config.yaml of a run.",
            code="missing-option",
        )
    names = [entry.name for entry in fields(Settings)]
    own = {name: whole[name] for name in names if name in whole}
    defaults = {**read_yaml(DEFAULT_PATH, "defaults"), "optimizer": {}, "scheduler": None}
    try:
        typed = OmegaConf.merge(OmegaConf.structured(Settings), resolve_plain(defaults), own)
        settings = OmegaConf.to_object(typed)
    except (ConfigKeyError, ValidationError) as cause:
        raise refusal(cause, own, "the config", []) from cause
    values = {name: getattr(settings, name) for name in names}
    for name in values["downstream"]:
        check_task_settings(name, whole[name], "the config")
    tasks = {name: TaskConfig.from_plain(whole[name]) for name in values["downstream"]}
    return RunConfig(**values, tasks=tasks)


def _make_absolute(config: Config, whole: Any) -> None:
    """Make paths absolute: a run may be resumed or evaluated from another folder."""
    for key in PATHS:
        try:
            path = OmegaConf.select(whole, key)
        except OmegaConfBaseException as cause:
            reason = " ".join(str(cause).split())
            raise UserError(
                f"{key} does not resolve: {reason}.", where=key, code="invalid-value"
            ) from cause
        if path:
            *sections, name = key.split(".")
            owner = config[sections[0]] if sections else config
            listed = isinstance(owner[name], list)
            paths = [
                os.path.abspath(os.path.expanduser(entry)) for entry in (path if listed else [path])
            ]
            owner[name] = paths if listed else paths[0]


def _data_folder(layers: Sequence[Mapping[str, Any]]) -> str | None:
    """The data folder of the last layer that sets it, or else of the environment."""
    named = [layer["data"] for layer in layers if "data" in layer]
    folder = named[-1] if named else os.environ.get("SUPERB_DATA")
    return None if folder is None else str(folder)


def _require_data_folder(config: Config, tasks: Sequence[str]) -> None:
    needing = [task for task in tasks if mentions_data(config[task])]
    if needing:
        raise UserError(
            f"No data folder is set, and the corpora of {', '.join(needing)} need one.",
            fix="Pass --data DIR or set SUPERB_DATA, or give each task its path "
            "(`downstream_expert.datarc` in its block of the config).",
            where="--data",
            code="corpus-unset",
        )
