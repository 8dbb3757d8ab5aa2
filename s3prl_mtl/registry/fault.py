"""Find whether an error comes from this package or from a plugin of another one."""

from __future__ import annotations

import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.errors import FROM_WORKER
from s3prl_mtl.registry.plugins import (
    OUR_PACKAGE,
    Plugin,
    discover_balancers,
    discover_tasks,
    discover_upstreams,
)

_WRITTEN_FRAME = re.compile(r'^ *File "(.+?)", line (\d+), in (.+)$', re.MULTILINE)
_OUR_MODULES = ("s3prl_mtl", "downstream_plugins")


@dataclass(frozen=True)
class Frame:
    """A line of code in a traceback."""

    path: str
    line: int
    function: str

    def __str__(self) -> str:
        path = Path(self.path)
        return f"{path.parent.name}/{path.name}, line {self.line}, in {self.function}"


def frames_of(error: BaseException) -> list[Frame]:
    """The traceback of an error, innermost frame last, including that of a loader worker."""
    stack = traceback.extract_tb(error.__traceback__)
    frames = [Frame(frame.filename, frame.lineno or 0, frame.name) for frame in stack]
    if FROM_WORKER.match(str(error)):
        found = _WRITTEN_FRAME.findall(str(error))
        frames += [Frame(path, int(line), function) for path, line, function in found]
    return frames


def plugin_at_fault(error: BaseException) -> tuple[Plugin, Frame] | None:
    """The plugin whose package raised an error, and the frame there; None if it was another.

    An error raised inside a library counts for the package that called the library.
    """
    ours = [root for name in _OUR_MODULES for root in _roots(name)]
    theirs = [
        (root, plugin)
        for discover in (discover_tasks, discover_upstreams, discover_balancers)
        for plugin in discover().values()
        if plugin.package != OUR_PACKAGE
        for root in _roots(plugin.entry_point.module.partition(".")[0])
    ]
    for frame in reversed(frames_of(error)):
        path = Path(frame.path)
        for root, plugin in theirs:
            if root == path or root in path.parents:
                return plugin, frame
        if any(root in path.parents for root in ours):
            return None
    return None


def _roots(name: str) -> list[Path]:
    """The folders of an imported package, or the file of an imported module."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    folders = list(getattr(module, "__path__", ()))
    return [Path(folder) for folder in folders] or ([Path(file)] if file else [])
