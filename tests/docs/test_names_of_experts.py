"""docs/plugins.md explains every public name of the base classes of tasks."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import pytest

from s3prl_mtl import ClassificationExpert, TaskExpert, TranscriptionExpert
from s3prl_mtl.tasks.settings import CheckedSettings
from tests.docs.pages import PAGES

SECTION = PAGES["docs/plugins.md"].read_text(encoding="utf-8").partition("\n## All names\n")[2]
TABLES = re.findall(r"(?:^\|.*\n)+", SECTION.partition("\n## ")[0], flags=re.MULTILINE)


def listed(table: str) -> list[str]:
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def public_names(*classes: type) -> set[str]:
    """Attributes of the class bodies, and those that their methods set."""
    names = set()
    for cls in classes:
        names |= set(vars(cls)) | set(vars(cls).get("__annotations__", {}))
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize(
    ("number", "classes"),
    list(
        enumerate([(TaskExpert, CheckedSettings), (ClassificationExpert,), (TranscriptionExpert,)])
    ),
)
def test_the_table_has_every_public_name(number: int, classes: tuple[type, ...]):
    shown = listed(TABLES[number])
    assert len(shown) == len(set(shown))
    inherited = public_names(TaskExpert, CheckedSettings) if number else set()
    # `forward` is abstract by convention, `predict` is optional: neither is in the class.
    expected = public_names(*classes) | ({"forward", "predict"} if not number else set())
    assert set(shown) == expected - inherited - ({"forward", "predict"} if number else set())
