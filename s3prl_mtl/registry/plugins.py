"""Discovery of tasks and upstreams through entry points.

Nothing is imported until it is asked for, so a broken plugin never breaks the others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.s3prl_compat.settings import block_defaults, chosen_blocks
from s3prl_mtl.s3prl_compat.task_spec import is_s3prl_task
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio

TASK_GROUP = "s3prl_mtl.tasks"
UPSTREAM_GROUP = "s3prl_mtl.upstreams"
OUR_PACKAGE = "s3prl-mtl"


class NoSuchPackage(UserError):
    """No installed package of the name that was asked for has the plugin."""


@dataclass(frozen=True)
class Plugin:
    """An entry point and the distribution that it comes from; nothing of it is imported yet."""

    name: str
    package: str
    version: str
    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    def load(self) -> Any:
        """Import what the entry point names.

        Raises:
            UserError: the import failed; names the plugin, its package and the cause.
        """
        try:
            try:
                return self.entry_point.load()
            except (OSError, ImportError) as cause:
                if "torchaudio" not in str(cause):
                    raise
                # Its compiled part does not load beside every torch, and a plugin may not need it.
                ensure_torchaudio()
                return self.entry_point.load()
        except (Exception, SystemExit) as cause:
            raise UserError(
                f"Plugin {self.name!r} of package {self.package} {self.version} cannot be "
                f"imported: {type(cause).__name__}: {cause}.",
                where=f"entry point {self.entry_point.value} of group {self.entry_point.group}",
                fix=f"Repair or uninstall {self.package}; the other plugins are not affected.",
            ) from cause


def discover_tasks() -> dict[str, Plugin]:
    """Every installed task by name, none of them imported.

    Where two packages give the same name, the keys are `package:name` for each.
    """
    return _discover(TASK_GROUP)


def discover_upstreams() -> dict[str, Plugin]:
    """Every installed upstream by name, none of them imported."""
    return _discover(UPSTREAM_GROUP)


def load_task(name: str, package: str | None = None, *, folder: str | None = None) -> type:
    """The expert class of a task.

    Args:
        name: of a plugin, `package:name`, or `s3prl:...` for an expert of s3prl.
        package: the only one whose plugin will do: `package` in the task's block.
        folder: of an expert of s3prl, where the name does not say it: `folder` in its block.

    Raises:
        UserError: no plugin has the name, several have it, that of the package is not installed or
            not the one that the name states, or it cannot be imported.
    """
    if is_s3prl_task(name):
        if package is not None:
            raise UserError(
                f"{name!r} is an expert of s3prl, and cannot be of package {package}.",
                fix="Leave out the package; its folder is `folder=...`.",
            )
        # Imported only where s3prl's experts are asked for.
        from s3prl_mtl.s3prl_compat.adapter import load_as_task

        return load_as_task(name, folder)
    return _expert_class(find_plugin(TASK_GROUP, name, "task", package))


def find_upstream(name: str) -> Callable[..., Any] | None:
    """The factory of an upstream, or None where no plugin has the name."""
    offers = _offers(UPSTREAM_GROUP)
    package, plain = split_name(name)
    of_package = package is not None and any(
        same_package(plugin.package, package) for plugin in offers.get(plain, [])
    )
    if name not in offers and not of_package:
        return None
    return find_plugin(UPSTREAM_GROUP, name, "upstream").load()


def find_plugin(
    group: str, name: str, kind: str, package: str | None = None, where: str | None = None
) -> Plugin:
    """The plugin with a name, or with `package:name` where several packages have it.

    Args:
        group: of entry points.
        name: of the plugin, with its package or without.
        kind: `task` or `upstream`, for errors.
        package: the only one whose plugin will do; None takes that of the name, or the only one.
        where: what gave the name, for the error that several packages have it.

    Raises:
        NoSuchPackage: the `package` has it not, or is not installed.
        UserError: none has the name, several have it, or the name states another package.
    """
    offers = _offers(group)
    named, plain = (None, name) if name in offers else split_name(name)
    candidates = offers.get(plain, [])
    if package is not None and named is not None and not same_package(package, named):
        raise UserError(
            f"{name!r} is a {kind} of package {named}, and cannot be that of {package}.",
            fix=f"Take {package}:{plain}, or leave out the other package.",
        )
    wanted = package or named
    if wanted is None and len(candidates) > 1:
        *others, last = map(str, candidates)
        raise UserError(
            f"{len(candidates)} packages have the {kind} {plain!r}: "
            f"{', '.join(others)} and {last}.",
            where=where or ("-d" if kind == "task" else "-u"),
            fix="Say which one: "
            + " or ".join(f"{plugin.package}:{plain}" for plugin in candidates)
            + ".",
        )
    for plugin in candidates:
        if wanted is None or same_package(plugin.package, wanted):
            return plugin
    if package is not None:
        owners = [plugin.package for plugin in candidates]
        raise NoSuchPackage(
            f"No installed package {package!r} has a {kind} {plain!r}.",
            where=where,
            fix=f"Install it, or take that of {' or '.join(owners)}."
            if owners
            else f"Install {package}.",
        )
    raise UserError(
        f"There is no {kind} named {name!r}.",
        where="-d" if kind == "task" else "-u",
        fix=nearest(name, list(_discover(group)))
        + f" (`python -m s3prl_mtl {kind}s` lists all of them.)",
    )


def split_name(name: str) -> tuple[str | None, str]:
    """The package that a name states, if it does, and the plain name: `a:ks` is `a` and `ks`."""
    package, colon, plain = name.partition(":")
    return (package, plain) if colon and not is_s3prl_task(name) else (None, name)


def same_package(first: str, second: str) -> bool:
    """Whether two names are of one distribution: `S3PRL_MTL` is `s3prl-mtl`."""
    one, other = (re.sub(r"[-_.]+", "-", name).lower() for name in (first, second))
    return one == other


def resolve_task(word: str) -> tuple[str, str]:
    """The plain name and the package of the task that a word means: `asv` is `sv` of ours.

    An alias is an entry point whose class states another name that its package has as well.

    Raises:
        UserError: as `load_task`.
    """
    plugin = find_plugin(TASK_GROUP, word, "task")
    stated = getattr(_expert_class(plugin), "name", None)
    same = [other.package for other in tasks_named(stated)] if isinstance(stated, str) else []
    return (str(stated) if plugin.package in same else plugin.name), plugin.package


def tasks_named(plain: str) -> list[Plugin]:
    """The tasks of a plain name, one of each package that has it."""
    return _offers(TASK_GROUP).get(plain, [])


def task_defaults(name: str, package: str | None = None) -> dict[str, Any]:
    """The settings in the `config.yaml` beside the module of a task; empty if it has none."""
    if is_s3prl_task(name):
        (task,), blocks = chosen_blocks([name])
        return block_defaults(task, [blocks])
    module = sys.modules[load_task(name, package).__module__]
    if module.__file__ is None:
        return {}
    path = Path(module.__file__).parent / "config.yaml"
    if not path.is_file():
        return {}
    return read_yaml(path, f"the defaults of task {name}")


def _expert_class(plugin: Plugin) -> type:
    expert = plugin.load()
    if not isinstance(expert, type):
        raise UserError(
            f"The task {plugin.name!r} of package {plugin.package} is no class but a "
            f"{type(expert).__name__}.",
            where=f"entry point {plugin.entry_point.value}",
            fix="The entry point names the class of the expert.",
        )
    return expert


def _offers(group: str) -> dict[str, list[Plugin]]:
    """The plugins by plain name: one of each package."""
    found: dict[str, list[Plugin]] = {}
    for entry_point in entry_points(group=group):
        package = entry_point.dist.name if entry_point.dist else "unknown package"
        version = entry_point.dist.version if entry_point.dist else "?"
        plugin = Plugin(entry_point.name, package, version, entry_point)
        same = found.setdefault(entry_point.name, [])
        # An editable install beside its own metadata folder lists the same entry point twice.
        if not any(same_package(other.package, package) for other in same):
            same.append(plugin)
    return found


def _discover(group: str) -> dict[str, Plugin]:
    plugins: dict[str, Plugin] = {}
    for name, candidates in sorted(_offers(group).items()):
        if len(candidates) == 1:
            plugins[name] = candidates[0]
        else:
            plugins.update({f"{plugin.package}:{name}": plugin for plugin in candidates})
    return plugins
