"""While s3prl builds a model, `eval` is restricted in its modules and nowhere else."""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from s3prl_mtl.upstreams.zoo.safe_eval import FORCE_WEIGHTS_ONLY, nothing_executed
from tests.mistakes import user_error

SOURCE = """
def evaluate(text):
    widths = [16]
    return eval(text)
"""


@pytest.fixture
def s3prl_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], ModuleType]]:
    """Makes and imports a module `s3prl.upstream.NAME`."""
    upstream = importlib.import_module("s3prl.upstream")
    monkeypatch.setattr(upstream, "__path__", [*upstream.__path__, str(tmp_path)])
    made: list[ModuleType] = []

    def make(name: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(SOURCE)
        importlib.invalidate_caches()
        made.append(importlib.import_module(f"s3prl.upstream.{name}"))
        return made[-1]

    yield make
    for module in made:
        del sys.modules[module.__name__]


def in_another_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_builtin_eval_is_untouched_and_modules_are_restored(
    s3prl_module: Callable[[str], ModuleType],
) -> None:
    before = builtins.eval
    early = s3prl_module("early")
    with nothing_executed():
        assert builtins.eval is before
        assert in_another_thread(lambda: builtins.eval) is before
        assert eval("abs(-1)") == 1
        late = s3prl_module("late")
        for module in (early, late):
            assert "eval" in vars(module)
            assert module.evaluate("widths * 2 + [3]") == [16, 16, 3]
            with user_error("torch-file-refused"):
                module.evaluate("abs(-1)")
            assert in_another_thread(lambda module=module: module.evaluate("abs(-1)")) == 1
    for module in (early, late):
        assert "eval" not in vars(module)
        assert module.evaluate("abs(-1)") == 1


@pytest.mark.parametrize("before", [None, "0"])
def test_everything_is_restored_after_an_error(
    before: str | None, s3prl_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FORCE_WEIGHTS_ONLY, raising=False)
    if before is not None:
        monkeypatch.setenv(FORCE_WEIGHTS_ONLY, before)
    module, finders = s3prl_module("module"), list(sys.meta_path)
    with pytest.raises(ZeroDivisionError), nothing_executed():
        assert os.environ[FORCE_WEIGHTS_ONLY] == "1"
        _ = 1 / 0
    assert os.environ.get(FORCE_WEIGHTS_ONLY) == before
    assert sys.meta_path == finders
    assert "eval" not in vars(module)


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os')",
        "[x for x in (1,)]",
        "lambda: 1",
        "(1).__class__",
        "(y := 2)",
        "f'{1}'",
        "1 if 1 else 2",
        "import os",
    ],
)
def test_only_arithmetic_and_paths_are_evaluated(
    code: str, s3prl_module: Callable[[str], ModuleType]
) -> None:
    module = s3prl_module("module")
    with nothing_executed(), user_error("torch-file-refused"):
        module.evaluate(code)
