"""Execute the modules of a package with additional globals, such as a replaced `print`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

Globals = Callable[[], Mapping[str, Any]]
"""Returns the globals to set in a module before its code runs."""


class GlobalsLoader(SourceFileLoader):
    """Sets names in a module, then executes it.

    Args:
        fullname: of the module.
        path: its file.
        make_globals: called once for each module.
    """

    def __init__(self, fullname: str, path: str, make_globals: Globals) -> None:
        super().__init__(fullname, path)
        self.make_globals = make_globals

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update(self.make_globals())
        super().exec_module(module)


class GlobalsFinder(MetaPathFinder):
    """Finds the modules whose names begin with a prefix, and no others, for `GlobalsLoader`.

    It has an effect while it is in `sys.meta_path`, before the finder of the path.

    Args:
        prefixes: such as `s3prl.downstream.`.
        make_globals: see :class:`GlobalsLoader`.
    """

    def __init__(self, prefixes: tuple[str, ...], make_globals: Globals) -> None:
        self.prefixes = prefixes
        self.make_globals = make_globals

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(self.prefixes):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = GlobalsLoader(spec.loader.name, spec.loader.path, self.make_globals)
        return spec
