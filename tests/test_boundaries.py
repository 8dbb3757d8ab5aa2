"""Plugins use what a third party could use, and the package never uses its plugins."""

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


INDEPENDENT = ("nn", "metrics", "balancing", "data")


@pytest.mark.parametrize("part", INDEPENDENT)
def test_the_parts_know_nothing_of_each_other_or_of_the_run(part: str) -> None:
    allowed = (f"s3prl_mtl.{part}", "s3prl_mtl.errors")
    for path in python_files(f"s3prl_mtl/{part}"):
        ours = {module for module, _ in imports(path) if module.split(".")[0] == "s3prl_mtl"}
        strangers = {module for module in ours if not module.startswith(allowed)}
        assert not strangers, f"{relative(path)} imports {strangers}"


def test_every_public_name_can_be_imported() -> None:
    for name in s3prl_mtl.__all__:
        assert getattr(s3prl_mtl, name) is not None
