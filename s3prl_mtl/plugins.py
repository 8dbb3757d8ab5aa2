"""Discovery of tasks and upstreams through entry points.

Nothing is imported until it is asked for, so a broken plugin never breaks the others.
"""

from __future__ import annotations

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


def load_task(name: str, folder: str | None = None) -> type:
    """The expert class of a task.

    Args:
        name: of a plugin, or `s3prl:...` for an expert of s3prl.
        folder: of the latter, where the name does not say it: `folder` in the task's block.

    Raises:
        UserError: no plugin has the name, two have it, or it cannot be imported.
    """
    if is_expert(name):
        # Imported only where s3prl's experts are asked for.
        from s3prl_mtl.s3prl_tasks.adapter import load_as_task

        return load_as_task(name, folder)
    plugin = find_plugin(TASK_GROUP, name, "task")
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
    plugins = discover_upstreams()
    package, colon, plain = name.partition(":")
    is_of_package = bool(colon) and plain in plugins and plugins[plain].package == package
    has_several = any(key.partition(":")[2] == name for key in plugins)
    if name not in plugins and not is_of_package and not has_several:
        return None
    return find_plugin(UPSTREAM_GROUP, name, "upstream").load()


def find_plugin(group: str, name: str, kind: str) -> Plugin:
    """The plugin with a name, or with `package:name` where several packages have it."""
    plugins = _discover(group)
    if name in plugins:
        return plugins[name]
    package, colon, plain = name.partition(":")
    if colon and plain in plugins and plugins[plain].package == package:
        return plugins[plain]
    qualified = [key for key in plugins if key.partition(":")[2] == name]
    if qualified:
        packages = " and ".join(
            f"{plugins[key].package} {plugins[key].version}" for key in qualified
        )
        raise UserError(
            f"Two packages have the {kind} {name!r}: {packages}.",
            fix="Say which one: " + " or ".join(qualified) + ".",
        )
    raise UserError(
        f"There is no {kind} named {name!r}.",
        where="-d" if kind == "task" else "-u",
        fix=nearest(name, list(plugins)) + f" (`python -m s3prl_mtl {kind}s` lists all of them.)",
    )


def canonical_task_name(word: str) -> str:
    """The name under which a run keeps a task: `asv` is `sv`.

    An alias is an entry point whose class states another name that is installed as well. A word
    for an expert of s3prl comes back with its path made absolute, if it has one.
    """
    if is_expert(word):
        return canonical_word(word)
    stated = getattr(load_task(word), "name", None)
    if isinstance(stated, str) and stated in discover_tasks():
        return stated
    return word


def task_defaults(name: str) -> dict[str, Any]:
    """The settings in the `config.yaml` beside the module of a task; empty if it has none."""
    if is_expert(name):
        (task,), blocks = chosen_blocks([name])
        return block_defaults(task, [blocks])
    module = sys.modules[load_task(name).__module__]
    if module.__file__ is None:
        return {}
    path = Path(module.__file__).parent / "config.yaml"
    if not path.is_file():
        return {}
    return read_yaml(path, f"the defaults of task {name}")


def _discover(group: str) -> dict[str, Plugin]:
    found: dict[str, list[Plugin]] = {}
    for entry_point in entry_points(group=group):
        package = entry_point.dist.name if entry_point.dist else "unknown package"
        version = entry_point.dist.version if entry_point.dist else "?"
        plugin = Plugin(entry_point.name, package, version, entry_point)
        same = found.setdefault(entry_point.name, [])
        # An editable install beside its own metadata folder lists the same entry point twice.
        if not any(other.package == package for other in same):
            same.append(plugin)
    plugins: dict[str, Plugin] = {}
    for name, candidates in sorted(found.items()):
        if len(candidates) == 1:
            plugins[name] = candidates[0]
        else:
            plugins.update({f"{plugin.package}:{name}": plugin for plugin in candidates})
    return plugins
