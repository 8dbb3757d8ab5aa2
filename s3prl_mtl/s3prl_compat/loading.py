"""Import of s3prl's experts, which see a torchaudio of their own.

Their modules are executed with an `import` statement that gives them :mod:`stand_ins` for what
torchaudio no longer has. It lives in the `__builtins__` of these modules alone: `torchaudio` in
`sys.modules` stays what it is, and nobody else's import changes, whichever comes first. It also
holds for what an expert imports later, inside a function.
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

from s3prl_mtl.errors import UserError
from s3prl_mtl.s3prl_compat.folders import expert_path, installed_root
from s3prl_mtl.s3prl_compat.module_globals import GlobalsFinder, GlobalsLoader
from s3prl_mtl.s3prl_compat.stand_ins import import_for_experts, print_for_experts
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio

CLASS = "DownstreamExpert"

_INSTALLED = "s3prl.downstream"
_ELSEWHERE = "s3prl_experts_at_"
"""Begins the names of the packages that stand for the parents of folders elsewhere."""

# Where the package on the registry is not called as the module is.
_PACKAGES = {
    "cached_property": "cached-property",
    "dtw": "dtw-python",
    "pkg_resources": "'setuptools<81'",
    "pb_bss_eval": "pb-bss-eval",
    "sklearn": "scikit-learn",
}


def load_expert(folder: str) -> type:
    """The expert class of a folder, as s3prl wrote it.

    Args:
        folder: of the installed s3prl by its name, any other by its path. In the latter,
            `from ..model import` finds what lies beside the folder, then what s3prl has.

    Raises:
        UserError: there is no such expert, or it cannot be imported; names the package that is
            missing.
    """
    path = expert_path(folder)
    ensure_torchaudio(required=False)  # Packages that experts import may import the real one.
    _install_finder()
    try:
        package = _INSTALLED if "/" not in folder else _parent_of(path)
        if package == _INSTALLED:
            name = f"{package}.{path.name}"
            _forget_plain_imports()
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
            where=str(path / "expert.py"),
            fix=f"pip install {_PACKAGES.get(missing, missing)}",
        ) from cause
    except (Exception, SystemExit) as cause:
        raise _cannot_import(path, cause) from cause
    expert = getattr(module, CLASS, None)
    if not isinstance(expert, type):
        raise UserError(
            f"There is no class {CLASS}.",
            where=str(path / "expert.py"),
            fix=f"s3prl's contract calls the expert {CLASS}.",
        )
    return expert


def _cannot_import(path: Path, cause: BaseException) -> UserError:
    reason = " ".join(str(cause).split()).rstrip(".")
    return UserError(
        f"s3prl's expert {path.name!r} cannot be imported: {type(cause).__name__}: {reason}.",
        where=str(path / "expert.py"),
        fix="docs/s3prl-experts.md says which experts of s3prl can be.",
    )


def _expert_globals() -> dict[str, Any]:
    """Our `import` and `print` among the builtins of an expert's module."""
    names = {"__import__": import_for_experts, "print": print_for_experts}
    return {"__builtins__": {**vars(builtins), **names}}


_FINDER = GlobalsFinder((f"{_INSTALLED}.", _ELSEWHERE), _expert_globals)


def _install_finder() -> None:
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def _forget_plain_imports() -> None:
    """Somebody may have imported experts before, without a stand-in: ours are made anew."""
    for name in [name for name in sys.modules if name.startswith(f"{_INSTALLED}.")]:
        loader = getattr(getattr(sys.modules[name], "__spec__", None), "loader", None)
        if type(loader) is SourceFileLoader:
            del sys.modules[name]


def _parent_of(path: Path) -> str:
    """The package that stands for the parent of a folder; its modules are s3prl's, too."""
    name = f"{_ELSEWHERE}{zlib.crc32(str(path.parent).encode()):08x}"
    if name not in sys.modules:
        root = installed_root()
        module = ModuleType(name)
        module.__path__ = [str(path.parent), *([str(root)] if root is not None else [])]
        sys.modules[name] = module
    return name


def _module_name(path: Path) -> str:
    """What a folder is called as a package: as it is, unless dots would be read as levels."""
    if "." not in path.name:
        return path.name
    # `a.b` and `a_b` may lie beside each other.
    return f"{path.name.replace('.', '_')}_{zlib.crc32(path.name.encode()):08x}"


def _make_package(name: str, path: Path) -> None:
    """A folder as a package, with or without an `__init__.py`.

    Without one, a folder of s3prl of the same name would be found in its place.
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
