"""Task specs and the names of tasks in a run.

A *spec* is what the user types for a task: `ks`, `package:ks`, an alias such as `asv`, or
`s3prl:...`. A run keeps a task under the name that it was started with, whatever packages are
installed later. Two tasks are the same if their plain names and their packages are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.registry.plugins import (
    OUR_PACKAGE,
    TASKS,
    PackageLacksPlugin,
    find_plugin,
    resolve_task,
    same_package,
    split_name,
    tasks_named,
)
from s3prl_mtl.s3prl_compat.task_spec import canonical_spec, is_s3prl_task, task_name

BUILT_IN_TASKS = ("asr", "pr", "sf", "ks", "ic", "sid", "er", "sv", "sd")

Packages = Mapping[str, str | None]
"""The package of each task of a run, by the name of the task in the run.

None if unknown: experts of s3prl, and runs saved before packages were recorded.
"""
Layers = Sequence[tuple[dict[str, Any], str]]
"""The layers of a config, each with its origin."""


class TaskPackageMissing(UserError):
    """The package of a task of the run is not installed or no longer has the task.

    Args:
        task: its plain name.
        package: recorded in the run.
        fix: the remedy.
    """

    def __init__(self, task: str, package: str, fix: str) -> None:
        others = ", ".join(map(str, tasks_named(task)))
        super().__init__(
            f"The task {task!r} of the run comes from package {package}, which is not installed "
            "or no longer has it."
            + (f" The task of the same name in {others} is not used instead." if others else ""),
            where=f"{task}.package in the config of the run",
            fix=fix,
            code="missing-package",
        )
        self.task = task
        self.package = package


def split_specs(text: str, flag: str = "-d") -> list[str]:
    """Split specs at commas.

    `all` stands for all tasks of this distribution; `-ks` takes out a task that is named before.

    Raises:
        UserError: there is none, or a task that is taken out is not among the others.
    """
    specs: list[str] = []
    ours = [f"{OUR_PACKAGE}:{task}" for task in BUILT_IN_TASKS]
    for spec in filter(None, map(str.strip, text.split(","))):
        if spec.startswith("-"):
            specs = _without(spec[1:], specs, flag)
        else:
            specs += ours if spec == "all" else [spec]
    if not specs:
        raise UserError(
            "The name of a task is missing.",
            where=flag,
            fix=f"For example {flag} asr,ks or {flag} all.",
            code="missing-option",
        )
    return list(dict.fromkeys(specs))


def _without(left_out: str, specs: Sequence[str], flag: str) -> list[str]:
    """The specs but one, which is given as such or as the plain name.

    Raises:
        UserError: it is not among them.
    """
    kept = [spec for spec in specs if left_out not in (spec, split_name(spec)[1])]
    if len(kept) == len(specs):
        raise UserError(
            f"The task {left_out!r} is not among those named before, so it cannot be left out.",
            where=flag,
            fix=nearest(left_out, [split_name(spec)[1] for spec in specs])
            if specs
            else f"For example {flag} all,-{left_out}.",
            code="unknown-name",
        )
    return kept


def task_packages(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str | None]:
    """The packages of tasks, from their blocks in a config or from their names.

    Args:
        config: of a run or of one of its checkpoints.
        names: of the tasks in it.
    """
    packages: dict[str, str | None] = {}
    for name in names:
        block = config.get(name)
        stated = block.get("package") if isinstance(block, Mapping) else None
        packages[name] = stated or split_name(name)[0]
    return packages


def find_in_run(spec: str, packages: Packages) -> str | None:
    """The name of a task in a run, or None if the run does not have it.

    Args:
        spec: of the task.
        packages: of the tasks of the run. A task of unknown package fits every package.

    Raises:
        UserError: several tasks of the run fit.
    """
    if is_s3prl_task(spec):
        name = spec if spec in packages else task_name(spec)
        return name if name in packages else None
    if spec in packages:
        return spec
    package, plain = split_name(spec)
    found = _with_plain_name(plain, package, packages)
    if not found:
        for plugin in tasks_named(plain):
            if package is None or same_package(package, plugin.package):
                found += _with_alias(f"{plugin.package}:{plain}", packages)
    found = list(dict.fromkeys(found))
    if len(found) > 1:
        raise UserError(
            f"{spec!r} fits several tasks of the run.",
            where=spec,
            fix=f"Choose {' or '.join(map(repr, found))}.",
            code="ambiguous-name",
        )
    return found[0] if found else None


def require_in_run(spec: str, packages: Packages, where: str) -> str:
    """The name of a task in a run.

    Args:
        spec, packages: as in :func:`find_in_run`.
        where: source of the spec, for errors.

    Raises:
        UserError: the run does not have the task, or several fit.
    """
    name = find_in_run(spec, packages)
    if name is None:
        others = same_name_tasks(spec, packages)
        raise UserError(
            f"The run has no task {spec!r}.",
            where=where,
            fix=f"It has {', '.join(others)}." if others else nearest(spec, list(packages)),
            code="unknown-name",
        )
    return name


def find_same_task(name: str, package: str | None, packages: Packages) -> str | None:
    """The name under which another run has a task of this run, or None.

    Args:
        name: of the task in this run.
        package: of the task.
        packages: of the tasks of the other run.
    """
    if is_s3prl_task(name):
        return name if name in packages else None
    found = _with_plain_name(split_name(name)[1], package, packages)
    # A task known to be of the package takes precedence over one of unknown package.
    return min(found, key=lambda other: (packages[other] is None, other != name), default=None)


def same_name_tasks(name: str, packages: Packages) -> list[str]:
    """The tasks of a run with the plain name of a task, with their packages, for errors."""
    plain = split_name(name)[1]
    return [
        f"{other} of package {package}"
        for other, package in packages.items()
        if split_name(other)[1] == plain and package is not None
    ]


def installed_package(name: str, package: str | None) -> str:
    """The installed package of a task in a checkpoint, in its own spelling.

    Args:
        name: of the task in the checkpoint.
        package: recorded there or given by the user; None if unknown.

    Raises:
        TaskPackageMissing: it is not installed or no longer has the task.
        UserError: it is unknown, and several packages have the task.
    """
    where = f"{name} in the checkpoint, which does not record its package"
    try:
        return find_plugin(TASKS, name, package, where).package
    except PackageLacksPlugin as cause:
        fix = f"Install {package} again, or leave the task out."
        raise TaskPackageMissing(split_name(name)[1], str(package), fix) from cause


def choose_tasks(
    specs: Sequence[str],
    packages: Packages,
    stated: Mapping[str, str],
    where: str | None = None,
) -> dict[str, str | None]:
    """The names and packages that a run gives to the tasks of specs.

    Args:
        specs: as after `-d`.
        packages: of the tasks of the run to resume; empty for a new run.
        stated: packages from the config, see :func:`stated_packages`.
        where: source of the specs, for errors; None for `-d`.

    Raises:
        UserError: no task or several fit a spec, or packages contradict each other.
    """
    chosen: dict[str, str | None] = {}
    for spec in specs:
        if is_s3prl_task(spec):
            chosen[canonical_spec(spec)] = None
            continue
        name = find_in_run(spec, packages)
        if name is None and spec in stated:
            name = spec
        if name is not None:
            package = _package_of(name, spec, packages, stated)
        else:
            plain, package = resolve_task(spec, where)
            unique = _is_unique(plain, package, packages, stated)
            name = plain if unique else f"{package}:{plain}"
        chosen.setdefault(name, package)
    return chosen


def stated_packages(layers: Layers) -> dict[str, str]:
    """The `package` of each task's block in a config; later layers override earlier ones.

    Raises:
        UserError: one is not a string.
    """
    stated: dict[str, str] = {}
    for layer, origin in layers:
        for name, block in layer.items():
            package = block.get("package") if isinstance(block, Mapping) else None
            if package is None or is_s3prl_task(name):
                continue
            if not isinstance(package, str):
                raise UserError(
                    f"{name}.package is {package!r} instead of the name of a package.",
                    where=f"{name}.package in {origin}",
                    code="wrong-type",
                )
            stated[name] = package
    return stated


def rename_blocks(layers: Layers, packages: Packages) -> list[tuple[dict[str, Any], str]]:
    """The layers of a config, with the blocks of tasks renamed to the names of the run.

    A block `ks` becomes that of `package:ks` and vice versa, unless it states another package.

    Args:
        layers: of the config.
        packages: of the tasks of the run.

    Raises:
        UserError: a block fits several tasks.
    """
    renamed = []
    for layer, origin in layers:
        names = {}
        for key, block in layer.items():
            names[key] = key
            if key in packages or is_s3prl_task(key) or not isinstance(block, Mapping):
                continue
            package, plain = split_name(key)
            owners = _with_plain_name(plain, block.get("package") or package, packages)
            if len(owners) > 1:
                raise UserError(
                    f"The block {key!r} fits several tasks.",
                    where=f"{key} in {origin}",
                    fix=f"Rename it to {' or '.join(owners)}, or state its `package`.",
                    code="ambiguous-name",
                )
            if owners and owners[0] not in layer:
                names[key] = owners[0]
        renamed.append(({names[key]: value for key, value in layer.items()}, origin))
    return renamed


def _package_of(name: str, spec: str, packages: Packages, stated: Mapping[str, str]) -> str:
    """The package of a task that the run or a block of the config has under a name."""
    saved, now = packages.get(name), stated.get(name)
    typed = split_name(spec)[0] or split_name(name)[0]
    for before, after in ((saved, now), (now, typed)):
        if before is not None and after is not None and not same_package(before, after):
            raise UserError(
                f"The task {name!r} comes from package {before}, not from {after}.",
                where=f"{name}.package in the config",
                fix=f"Leave it unchanged, or choose -d {after}:{split_name(name)[1]}.",
                code="conflicting-options",
            )
    package = saved or now or typed
    if name in packages:
        return installed_package(name, package)
    return find_plugin(TASKS, name, package, f"{name}.package in the config").package


def _is_unique(plain: str, package: str, packages: Packages, stated: Mapping[str, str]) -> bool:
    """Whether the plain name identifies the task of a package in a run.

    The config or the run states its package; otherwise only one package may have it.
    """
    known = stated.get(plain, packages.get(plain))
    if known is None:
        return plain not in packages and len(tasks_named(plain)) == 1
    return same_package(known, package)


def _with_plain_name(plain: str, package: str | None, packages: Packages) -> list[str]:
    """The tasks with a plain name that are, or may be, of a package."""
    return [
        name
        for name, own in packages.items()
        if split_name(name)[1] == plain
        and not is_s3prl_task(name)
        and (package is None or own is None or same_package(own, package))
    ]


def _with_alias(spec: str, packages: Packages) -> list[str]:
    """The tasks for which an installed plugin is an alias."""
    try:
        plain, package = resolve_task(spec)
    except UserError:
        return []  # A broken plugin is an alias of nothing.
    return _with_plain_name(plain, package, packages)
