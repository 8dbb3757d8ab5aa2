"""Every `UserError` has a stable code, and tests check codes instead of sentences."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3prl_mtl.errors import CODES

ROOT = Path(__file__).parents[1]
ERRORS = ("UserError", "SharedMistake")
SOURCES = sorted(
    path
    for folder in ("s3prl_mtl", "downstream_plugins", "examples")
    for path in (ROOT / folder).rglob("*.py")
)
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if "fixtures" not in path.parts)
TEXT = re.compile(
    r"\.(what|where|fix|err|stderr|getMessage)\b|caplog\.(text|messages)"
    r"|str\([^()]*(error|\.value)\)|\bproblems?\b"
)
"""Code that gives the text of an error, a warning, a finding or a problem of a corpus."""
PHRASE = re.compile(r"(?<![\w.'-])[a-z]+( [a-z]+){2,}")
"""Three lower-case words: a piece of a sentence, not a name."""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def calls(path: Path, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else None
            name = function.id if isinstance(function, ast.Name) else name
            if name in names:
                yield node


def codes_of(call: ast.Call) -> list[ast.expr]:
    return [keyword.value for keyword in call.keywords if keyword.arg == "code"]


def test_codes_are_kebab_case_and_sorted() -> None:
    assert list(CODES) == sorted(CODES)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in CODES)


def test_every_code_is_used() -> None:
    used = {
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and path.name != "errors.py"
    }
    assert set(CODES) - used == {"invalid-input"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_error_states_a_known_code(path: Path) -> None:
    for call in calls(path, *ERRORS):
        codes = codes_of(call)
        assert codes, f"line {call.lineno}: no code"
        if isinstance(codes[0], ast.Constant):
            assert codes[0].value in CODES, f"line {call.lineno}: {codes[0].value!r}"


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_no_test_matches_the_text_of_an_error(path: Path) -> None:
    for call in calls(path, "raises"):
        named = {
            node.id for arg in call.args for node in ast.walk(arg) if isinstance(node, ast.Name)
        }
        if named & set(ERRORS):
            assert not any(keyword.arg == "match" for keyword in call.keywords), call.lineno


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_no_test_asserts_a_phrase_of_a_message(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = [node.test for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    checked = [test for test in checked if TEXT.search(ast.unparse(test))]
    checked += [keyword.value for call in calls(path, "user_error") for keyword in call.keywords]
    for node in (node for test in checked for node in ast.walk(test)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not PHRASE.search(node.value), f"line {node.lineno}: {node.value!r}"
