"""Whose code an error is from: ours, or that of a package with plugins."""

from __future__ import annotations

import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.registry.plugins import OUR_PACKAGE, Plugin, discover_tasks, discover_upstreams

# How Python writes a frame: a loader worker sends its error on as text, with its frames in it.
_WRITTEN_FRAME = re.compile(r'^ *File "(.+?)", line (\d+), in (.+)$', re.MULTILINE)
_SENT_ON = re.compile(r"Caught \w+ in .*?\n", re.DOTALL)
OURS = ("s3prl_mtl", "downstream_plugins")


@dataclass(frozen=True)
class Frame:
    """A place in a program."""

    path: str
    line: int
    function: str

    def __str__(self) -> str:
        path = Path(self.path)
        return f"{path.parent.name}/{path.name}, line {self.line}, in {self.function}"


def frames_of(error: BaseException) -> list[Frame]:
    """Where an error was raised, innermost last; in a loader worker if it was there."""
    stack = traceback.extract_tb(error.__traceback__)
    frames = [Frame(frame.filename, frame.lineno or 0, frame.name) for frame in stack]
    if _SENT_ON.match(str(error)):
        found = _WRITTEN_FRAME.findall(str(error))
        frames += [Frame(path, int(line), function) for path, line, function in found]
    return frames


def error_summary(error: BaseException) -> str:
    """The kind of an error and what it says; of one that a loader worker met, its own words."""
    text = str(error).strip()
    if _SENT_ON.match(text):
        return text.splitlines()[-1].rstrip(".")
    text = " ".join(text.split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def plugin_at_fault(error: BaseException) -> tuple[Plugin, Frame] | None:
    """The plugin in whose package an error was raised, and where; None if that was elsewhere.

    What a library raised, Python's own or another, counts as raised where it was called.
    """
    ours = [root for name in OURS for root in _roots(name)]
    theirs = [
        (root, plugin)
        for plugin in (*discover_tasks().values(), *discover_upstreams().values())
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
    """The folders of a package that was imported, or the file of a module."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    folders = list(getattr(module, "__path__", ()))
    return [Path(folder) for folder in folders] or ([Path(file)] if file else [])
