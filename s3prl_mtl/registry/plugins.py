"""Find the tasks, upstreams and balancers of installed packages through entry points.

A plugin is imported when it is used, so that a broken one does not break the others.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError, error_summary, nearest
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.s3prl_compat.settings import block_defaults, parse_specs
from s3prl_mtl.s3prl_compat.task_spec import is_s3prl_task
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio

OUR_PACKAGE = "s3prl-mtl"


@dataclass(frozen=True)
class PluginKind:
    """A group of entry points, with the noun and the command-line flag for errors."""

    group: str
    noun: str
    flag: str


TASKS = PluginKind("s3prl_mtl.tasks", "task", "-d")
UPSTREAMS = PluginKind("s3prl_mtl.upstreams", "upstream", "-u")
BALANCERS = PluginKind("s3prl_mtl.balancers", "balancer", "--balancer")
TRACKERS = PluginKind("s3prl_mtl.trackers", "tracker", "--track")


class PackageLacksPlugin(UserError):
    """The requested package is not installed or does not have the plugin."""


@dataclass(frozen=True)
class Plugin:
    """An entry point with its distribution; not imported yet."""

    name: str
    package: str
    version: str
    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    def load(self) -> Any:
        """Import the object that the entry point names.

        Raises:
            UserError: the import failed; names the plugin, its package and the cause.
        """
        try:
            try:
                return self.entry_point.load()
            except (OSError, ImportError) as cause:
                if "torchaudio" not in str(cause):
                    raise
                # Only now: a plugin without torchaudio should not pay for its import.
                ensure_torchaudio()
                return self.entry_point.load()
        except (Exception, SystemExit) as cause:
            raise UserError(
                f"Plugin {self.name!r} of package {self} cannot be imported: "
                f"{error_summary(cause)}.",
                where=f"entry point {self.entry_point.value} of group {self.entry_point.group}",
                fix=f"Repair or uninstall {self.package}; other plugins are not affected.",
                code="plugin-broken",
            ) from cause


def discover_tasks() -> dict[str, Plugin]:
    """All installed tasks by name, without importing them.

    If several packages have a task of the same name, the keys are `package:name`.
    """
    return _discover(TASKS)


def discover_upstreams() -> dict[str, Plugin]:
    """All installed upstreams by name, without importing them; keys as in `discover_tasks`."""
    return _discover(UPSTREAMS)


def discover_balancers() -> dict[str, Plugin]:
    """All installed balancers of other packages, without importing them."""
    return _discover(BALANCERS)


def discover_trackers() -> dict[str, Plugin]:
    """All installed trackers of other packages, without importing them."""
    return _discover(TRACKERS)


def load_task(name: str, package: str | None = None, *, folder: str | None = None) -> type:
    """The expert class of a task.

    Args:
        name: of a plugin, `package:name`, or `s3prl:...` for an expert of s3prl.
        package: accept only a plugin of this package (`package` in the task's block).
        folder: of an expert of s3prl, if the name does not state it (`folder` in its block).

    Raises:
        UserError: no plugin or several have the name, `package` does not have it or contradicts
            the name, or the import fails.
    """
    if is_s3prl_task(name):
        if package is not None:
            raise UserError(
                f"{name!r} is an expert of s3prl and cannot come from package {package}.",
                where=f"package {package}",
                fix="Leave out the package; use `folder` for the expert's folder.",
                code="conflicting-options",
            )
        from s3prl_mtl.s3prl_compat.adapter import load_as_task  # Slow to import.

        return load_as_task(name, folder)
    return _expert_class(find_plugin(TASKS, name, package))


def find_upstream(name: str) -> Callable[..., Any] | None:
    """The factory of an upstream, or None if no plugin has the name."""
    by_name = _plugins_by_name(UPSTREAMS)
    package, plain = split_name(name)
    in_package = package is not None and any(
        same_package(plugin.package, package) for plugin in by_name.get(plain, [])
    )
    if name not in by_name and not in_package:
        return None
    return find_plugin(UPSTREAMS, name).load()


def find_plugin(
    kind: PluginKind, name: str, package: str | None = None, where: str | None = None
) -> Plugin:
    """The plugin of a name, or of `package:name` if several packages have it.

    Args:
        kind: tasks, upstreams, balancers or trackers.
        name: of the plugin, with or without its package.
        package: accept only a plugin of this package; None accepts that of the name, or the only
            one.
        where: source of the name, for errors; None for the flag.

    Raises:
        PackageLacksPlugin: `package` is not installed or does not have the plugin.
        UserError: no plugin or several have the name, or it states another package.
    """
    by_name = _plugins_by_name(kind)
    stated, plain = (None, name) if name in by_name else split_name(name)
    candidates = by_name.get(plain, [])
    if package is not None and stated is not None and not same_package(package, stated):
        raise UserError(
            f"{name!r} comes from package {stated}, not from {package}.",
            where=where or name,
            fix=f"Use {package}:{plain}, or leave out the other package.",
            code="conflicting-options",
        )
    wanted = package or stated
    found = [
        plugin for plugin in candidates if wanted is None or same_package(plugin.package, wanted)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        packages = ", ".join(map(str, found))
        raise UserError(
            f"{len(found)} packages have the {kind.noun} {plain!r}: {packages}.",
            where=where or kind.flag,
            fix=f"Choose {' or '.join(f'{plugin.package}:{plain}' for plugin in found)}.",
            code="ambiguous-name",
        )
    if package is not None:
        owners = " or ".join(plugin.package for plugin in candidates)
        raise PackageLacksPlugin(
            f"No installed package {package!r} has a {kind.noun} {plain!r}.",
            where=where or f"package {package}",
            fix=f"Install {package}" + (f", or use that of {owners}." if owners else "."),
            code="missing-package",
        )
    raise UserError(
        f"There is no {kind.noun} named {name!r}.",
        where=where or f"{kind.flag} {name}",
        fix=f"{nearest(name, list(_discover(kind)))} (`s3prl-mtl {kind.noun}s` lists all of them.)",
        code="unknown-name",
    )


def split_name(name: str) -> tuple[str | None, str]:
    """Package and plain name: `a:ks` gives `a` and `ks`; without a package `None` and the name."""
    package, colon, plain = name.partition(":")
    return (package, plain) if colon and not is_s3prl_task(name) else (None, name)


def same_package(first: str, second: str) -> bool:
    """Whether two spellings name the same distribution: `S3PRL_MTL` and `s3prl-mtl`."""
    one, other = (re.sub(r"[-_.]+", "-", name).lower() for name in (first, second))
    return one == other


def resolve_task(spec: str, where: str | None = None) -> tuple[str, str]:
    """The plain name and the package of a task; an alias such as `asv` gives `sv`.

    An alias is an entry point with a class that states another name, which its package also has.

    Args:
        spec: of the task.
        where: source of the spec, for errors; None for `-d`.

    Raises:
        UserError: as `load_task`.
    """
    plugin = find_plugin(TASKS, spec, where=where)
    stated = getattr(_expert_class(plugin), "name", None)
    owners = [other.package for other in tasks_named(stated)] if isinstance(stated, str) else []
    return (str(stated) if plugin.package in owners else plugin.name), plugin.package


def tasks_named(plain: str) -> list[Plugin]:
    """The tasks with a plain name, one for each package that has it."""
    return _plugins_by_name(TASKS).get(plain, [])


def task_defaults(name: str, package: str | None = None) -> dict[str, Any]:
    """The settings in the `config.yaml` beside the module of a task; empty without a file."""
    if is_s3prl_task(name):
        (task,), blocks = parse_specs([name])
        return block_defaults(task, [blocks])
    module = sys.modules[load_task(name, package).__module__]
    if module.__file__ is None:
        return {}
    path = Path(module.__file__).parent / "config.yaml"
    return read_yaml(path, f"the defaults of task {name}") if path.is_file() else {}


def _expert_class(plugin: Plugin) -> type:
    expert = plugin.load()
    if not isinstance(expert, type):
        raise UserError(
            f"The task {plugin.name!r} of package {plugin.package} is a {type(expert).__name__} "
            "instead of a class.",
            where=f"entry point {plugin.entry_point.value}",
            fix="Let the entry point name the class of the expert.",
            code="plugin-broken",
        )
    return expert


def _plugins_by_name(kind: PluginKind) -> dict[str, list[Plugin]]:
    """The plugins by plain name, one for each package."""
    # Packages that are installed later change the folder; importlib.metadata also relies on this.
    folders = tuple((path, _modified(path)) for path in sys.path)
    return _found_in(folders, kind.group, entry_points)


def _modified(path: str) -> int | None:
    try:
        return os.stat(path or ".").st_mtime_ns
    except (OSError, ValueError):
        return None


# Once for each state of the folders: a start asks 90 times, and each reads some 20 files.
@cache
def _found_in(
    folders: tuple[tuple[str, int | None], ...],
    group: str,
    entry_points: Callable[..., Iterable[EntryPoint]],
) -> dict[str, list[Plugin]]:
    found: dict[str, list[Plugin]] = {}
    for entry_point in entry_points(group=group):
        package = entry_point.dist.name if entry_point.dist else "unknown package"
        version = entry_point.dist.version if entry_point.dist else "?"
        plugin = Plugin(entry_point.name, package, version, entry_point)
        same_name = found.setdefault(entry_point.name, [])
        # An editable install beside its own metadata folder lists an entry point twice.
        if not any(same_package(other.package, package) for other in same_name):
            same_name.append(plugin)
    return found


def _discover(kind: PluginKind) -> dict[str, Plugin]:
    plugins: dict[str, Plugin] = {}
    for name, candidates in sorted(_plugins_by_name(kind).items()):
        if len(candidates) == 1:
            plugins[name] = candidates[0]
        else:
            plugins.update({f"{plugin.package}:{name}": plugin for plugin in candidates})
    return plugins
