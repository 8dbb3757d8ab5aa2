"""The examples import public names only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PUBLIC = {
    "s3prl_mtl",
    "s3prl_mtl.authoring",
    "s3prl_mtl.data",
    "s3prl_mtl.data.mini_corpus",
    "s3prl_mtl.errors",
    "s3prl_mtl.metrics",
    "s3prl_mtl.nn",
}
FILES = sorted(EXAMPLES.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(EXAMPLES)) for path in FILES])
def test_only_public_names_are_imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert module.partition(".")[0] != "downstream_plugins"
            assert not module.startswith("s3prl_mtl") or module in PUBLIC, module
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
            assert not {"s3prl_mtl", "downstream_plugins"} & set(names)
