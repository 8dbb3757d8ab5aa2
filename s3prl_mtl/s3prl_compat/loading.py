"""Import s3prl's experts.

Their modules are executed with an `import` statement that provides :mod:`stand_ins` for parts of
torchaudio that no longer exist. It is set in the `__builtins__` of these modules only, so it also
applies to imports inside functions; `sys.modules["torchaudio"]` and imports elsewhere do not
change.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
import zlib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_mtl.errors import UserError, error_summary
from s3prl_mtl.s3prl_compat.folders import EXPERT_FILE, expert_path, installed_root
from s3prl_mtl.s3prl_compat.module_globals import GlobalsFinder, GlobalsLoader
from s3prl_mtl.s3prl_compat.stand_ins import import_for_experts, print_for_experts
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio

CLASS = "DownstreamExpert"

_INSTALLED = "s3prl.downstream"
_ELSEWHERE = "s3prl_experts_at_"
"""Prefix of the packages that represent the parents of folders outside s3prl."""

# Packages with another name than their modules.
_PACKAGES = {
    "cached_property": "cached-property",
    "dtw": "dtw-python",
    "pkg_resources": "'setuptools<81'",
    "pb_bss_eval": "pb-bss-eval",
    "sklearn": "scikit-learn",
}


def load_expert(folder: str) -> type:
    """The class of an expert, unmodified.

    Args:
        folder: a name in the installed s3prl, or a path. In a folder elsewhere `from ..model
            import` searches beside the folder first, then in s3prl.

    Raises:
        UserError: there is no such expert, or it cannot be imported; names a missing package.
    """
    path = expert_path(folder)
    ensure_torchaudio(required=False)  # Packages that experts import may import the real one.
    _install_finder()
    try:
        package = _INSTALLED if "/" not in folder else _parent_of(path)
        if package == _INSTALLED:
            name = f"{package}.{path.name}"
            _forget_unadapted_modules()
        else:
            name = f"{package}.{_module_name(path)}"
            _make_package(name, path)
        module = importlib.import_module(f"{name}.expert")
    except UserError:
        raise
    except ModuleNotFoundError as cause:
        missing = (cause.name or "").partition(".")[0]
        if not missing or missing == "s3prl" or missing.startswith(_ELSEWHERE):
            raise _cannot_import(path, cause) from cause
        raise UserError(
            f"s3prl's expert {path.name!r} needs the package {missing!r}, which is not installed.",
            where=str(path / EXPERT_FILE),
            fix=f"pip install {_PACKAGES.get(missing, missing)}",
            code="missing-package",
        ) from cause
    except (Exception, SystemExit) as cause:
        raise _cannot_import(path, cause) from cause
    expert = getattr(module, CLASS, None)
    if not isinstance(expert, type):
        raise UserError(
            f"The expert lacks the class {CLASS}.",
            where=str(path / EXPERT_FILE),
            fix=f"Name the expert {CLASS}, as s3prl does.",
            code="expert-invalid",
        )
    return expert


def _cannot_import(path: Path, cause: BaseException) -> UserError:
    return UserError(
        f"s3prl's expert {path.name!r} cannot be imported: {error_summary(cause)}.",
        where=str(path / EXPERT_FILE),
        fix="See docs/s3prl-experts.md for the experts of s3prl that can be imported.",
        code="expert-failed",
    )


def _expert_globals() -> dict[str, Any]:
    """Our `import` and `print` among the builtins of an expert's module."""
    names = {"__import__": import_for_experts, "print": print_for_experts}
    return {"__builtins__": {**vars(builtins), **names}}


_FINDER = GlobalsFinder((f"{_INSTALLED}.", _ELSEWHERE), _expert_globals)


def _install_finder() -> None:
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def _forget_unadapted_modules() -> None:
    """Remove modules of experts that other code has imported, so that they are loaded again."""
    for name in [name for name in sys.modules if name.startswith(f"{_INSTALLED}.")]:
        loader = getattr(getattr(sys.modules[name], "__spec__", None), "loader", None)
        if type(loader) is SourceFileLoader:
            del sys.modules[name]


def _parent_of(path: Path) -> str:
    """The package that represents the parent of a folder; s3prl's modules are part of it."""
    name = f"{_ELSEWHERE}{zlib.crc32(str(path.parent).encode()):08x}"
    if name not in sys.modules:
        root = installed_root()
        module = ModuleType(name)
        module.__path__ = [str(path.parent), *([str(root)] if root is not None else [])]
        sys.modules[name] = module
    return name


def _module_name(path: Path) -> str:
    """The name of a folder as a package, without dots, which would separate levels."""
    if "." not in path.name:
        return path.name
    # `a.b` and `a_b` may exist side by side.
    return f"{path.name.replace('.', '_')}_{zlib.crc32(path.name.encode()):08x}"


def _make_package(name: str, path: Path) -> None:
    """Make a package of a folder with or without an `__init__.py`.

    Without this, a folder of s3prl with the same name could be found first.
    """
    if name in sys.modules:
        return
    init = path / "__init__.py"
    if init.is_file():
        loader = GlobalsLoader(name, str(init), _expert_globals)
        spec = importlib.util.spec_from_file_location(
            name, init, loader=loader, submodule_search_locations=[str(path)]
        )
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    else:
        module = ModuleType(name)
        module.__path__ = [str(path)]
        sys.modules[name] = module
