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
from s3prl_mtl.s3prl_tasks.block import block_defaults, chosen_blocks
from s3prl_mtl.s3prl_tasks.word import canonical_word, is_expert
from s3prl_mtl.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.yaml_files import read_yaml

TASK_GROUP = "s3prl_mtl.tasks"
UPSTREAM_GROUP = "s3prl_mtl.upstreams"
OUR_PACKAGE = "s3prl-mtl"


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


def load_task(name: str, folder: str | None = None, package: str | None = None) -> type:
    """The expert class of a task.

    Args:
        name: of a plugin, or `s3prl:...` for an expert of s3prl.
        folder: of the latter, where the name does not say it: `folder` in the task's block.
        package: the only one whose plugin will do: `package` in the task's block.

    Raises:
        UserError: no plugin has the name, two have it, that of the package is not installed, or it
            cannot be imported.
    """
    if is_expert(name):
        # Imported only where s3prl's experts are asked for.
        from s3prl_mtl.s3prl_tasks.adapter import load_as_task

        return load_as_task(name, folder)
    plugin = find_plugin(TASK_GROUP, name, "task", package)
    expert = plugin.load()
    if not isinstance(expert, type):
        raise UserError(
            f"The task {name!r} of package {plugin.package} is no class but a "
            f"{type(expert).__name__}.",
            where=f"entry point {plugin.entry_point.value}",
            fix="The entry point names the class of the expert.",
        )
    return expert


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
        UserError: none has the name, several have it, or the package has it not.
    """
    offers = _offers(group)
    named, plain = (None, name) if name in offers else split_name(name)
    candidates = offers.get(plain, [])
    wanted = package or named
    if wanted is None and len(candidates) > 1:
        raise UserError(
            f"Two packages have the {kind} {plain!r}: {' and '.join(map(str, candidates))}.",
            where=where,
            fix="Say which one: "
            + " or ".join(f"{plugin.package}:{plain}" for plugin in candidates)
            + ".",
        )
    for plugin in candidates:
        if wanted is None or same_package(plugin.package, wanted):
            return plugin
    if package is not None:
        others = " and ".join(map(str, candidates))
        another = f" Another one of that name is of {others}: it is not taken for it."
        raise UserError(
            f"The {kind} {plain!r} of the run is that of package {package}, which is not installed "
            f"or no longer has it.{another if others else ''}",
            where=f"{name}.package in the config",
            fix=f"Install {package} again, or leave the {kind} out.",
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
    return (package, plain) if colon and not is_expert(name) else (None, name)


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
    stated = getattr(load_task(word), "name", None)
    same = [other.package for other in task_offers(stated)] if isinstance(stated, str) else []
    return (str(stated) if plugin.package in same else plugin.name), plugin.package


def task_offers(plain: str) -> list[Plugin]:
    """The tasks of a plain name, one of each package that has it."""
    return _offers(TASK_GROUP).get(plain, [])


def canonical_task_name(word: str) -> str:
    """The name under which a new run keeps a task: `asv` is `sv`.

    It is `package:name` where several packages have the name. A word for an expert of s3prl comes
    back with its path made absolute, if it has one.
    """
    if is_expert(word):
        return canonical_word(word)
    plain, package = resolve_task(word)
    return plain if len(task_offers(plain)) == 1 else f"{package}:{plain}"


def task_defaults(name: str, package: str | None = None) -> dict[str, Any]:
    """The settings in the `config.yaml` beside the module of a task; empty if it has none."""
    if is_expert(name):
        (task,), blocks = chosen_blocks([name])
        return block_defaults(task, [blocks])
    module = sys.modules[load_task(name, package=package).__module__]
    if module.__file__ is None:
        return {}
    path = Path(module.__file__).parent / "config.yaml"
    if not path.is_file():
        return {}
    return read_yaml(path, f"the defaults of task {name}")


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
