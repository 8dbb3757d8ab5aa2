"""Plugins import public names only; sub-packages import lower layers only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import s3prl_mtl

ROOT = Path(__file__).parents[1]
PUBLIC_MODULES = ("s3prl_mtl.nn", "s3prl_mtl.metrics", "s3prl_mtl.data", "s3prl_mtl.errors")


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """Module and name of every import of a file; the name is None for a whole module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield str(node.module), alias.name


def python_files(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", python_files("downstream_plugins"), ids=relative)
def test_a_plugin_imports_only_public_names(path: Path) -> None:
    for module, name in imports(path):
        if module.split(".")[0] != "s3prl_mtl":
            continue
        assert name is not None, f"{module} is imported whole"
        if module == "s3prl_mtl":
            assert name in s3prl_mtl.__all__
            continue
        assert module in PUBLIC_MODULES
        if module != "s3prl_mtl.errors":
            home = __import__(module, fromlist=["__all__"])
            assert name in home.__all__


@pytest.mark.parametrize("path", python_files("s3prl_mtl"), ids=relative)
def test_the_package_never_imports_its_plugins(path: Path) -> None:
    modules = {module.split(".")[0] for module, _ in imports(path)}
    assert "downstream_plugins" not in modules


LAYERS = (
    ("cli",),
    ("api",),
    ("study",),
    ("authoring", "serving"),
    ("clustering", "export", "inference"),
    ("training",),
    ("tracking",),
    ("checkpoint",),
    ("config",),
    ("balancing", "optim", "mtl_branch"),
    ("upstreams",),
    ("registry",),
    ("s3prl_compat",),
    ("tasks",),
    ("data", "distributed", "metrics", "nn"),
    ("fileio", "settings"),
    ("errors",),
)
"""From the top down: a sub-package imports only from the layers below its own."""

LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def subpackages_imported_by(path: Path) -> set[str]:
    """The sub-packages that a file imports from, at its top level or inside functions."""
    found = set()
    for module, name in imports(path):
        head, *rest = module.split(".")
        if head != "s3prl_mtl":
            continue
        if not rest and name in LAYER_OF:
            rest = [name]
        found.add(rest[0] if rest else "")
    return found


def test_the_package_has_the_listed_subpackages_only() -> None:
    found = {path.name for path in (ROOT / "s3prl_mtl").iterdir() if path.name != "__pycache__"}
    files = {"__init__.py", "__main__.py", "errors.py", "py.typed"}
    assert found == files | set(LAYER_OF) - {"errors"}


def test_every_subpackage_has_a_folder_of_tests() -> None:
    tested = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert set(LAYER_OF) - {"errors"} <= tested


@pytest.mark.parametrize("subpackage", sorted(set(LAYER_OF) - {"errors"}))
def test_a_subpackage_imports_only_from_lower_layers(subpackage: str) -> None:
    below = {other for other in LAYER_OF if LAYER_OF[other] > LAYER_OF[subpackage]}
    for path in python_files(f"s3prl_mtl/{subpackage}"):
        outside = subpackages_imported_by(path) - {subpackage} - below
        assert not outside, f"{relative(path)} imports from {outside}"


ALLOWED_IN_BALANCING = {
    ("s3prl_mtl.data.sampling", "derived_seed"),
    ("s3prl_mtl.nn", "to_device"),
    ("s3prl_mtl.registry.plugins", "BALANCERS"),
    ("s3prl_mtl.registry.plugins", "discover_balancers"),
    ("s3prl_mtl.registry.plugins", "find_plugin"),
}
"""Why: *Decisions* in docs/architecture.md."""


@pytest.mark.parametrize("path", python_files("s3prl_mtl/balancing"), ids=relative)
def test_balancing_knows_little_of_other_subpackages(path: Path) -> None:
    for module, name in imports(path):
        head, _, rest = module.partition(".")
        if head == "s3prl_mtl" and rest.split(".")[0] not in ("balancing", "errors"):
            assert (module, name) in ALLOWED_IN_BALANCING


def test_every_public_name_can_be_imported() -> None:
    for name in s3prl_mtl.__all__:
        assert getattr(s3prl_mtl, name) is not None
