"""Build a model of s3prl without executing code from its checkpoint.

s3prl passes settings of a checkpoint, such as ``[(512,10,5)] + [(512,3,2)] * 4``, to `eval`, and
loads some checkpoints with ``torch.load(weights_only=False)``.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from s3prl_mtl.errors import UserError
from s3prl_mtl.s3prl_compat.module_globals import GlobalsFinder

FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's own switch; it also overrides an explicit `torch.load(weights_only=False)`."""

_PREFIX = "s3prl."
_ALLOWED_SYNTAX = (
    ast.Expression,
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Dict,
    ast.BinOp,
    ast.UnaryOp,
    ast.operator,
    ast.unaryop,
    # Paths of modules in s3prl's own code: `self.model.encoder.layers[3]`.
    ast.Name,
    ast.Attribute,
    ast.Subscript,
    ast.expr_context,
)
_one_at_a_time = threading.Lock()


@contextmanager
def nothing_executed() -> Iterator[None]:
    """While active, pickles load as plain values and s3prl's `eval` refuses calls.

    `eval` is set as a global of s3prl's modules only and removed afterwards; in other threads
    these modules evaluate as usual, and `builtins.eval` is never touched. torch's switch for
    pickles holds for the whole process. A second thread waits.
    """
    checked = _make_checked_eval()
    finder = GlobalsFinder((_PREFIX,), lambda: {"eval": checked})
    with _one_at_a_time:
        for module in _s3prl_modules():
            vars(module)["eval"] = checked
        sys.meta_path.insert(0, finder)  # For modules that are first imported during the build.
        before = os.environ.get(FORCE_WEIGHTS_ONLY)
        os.environ[FORCE_WEIGHTS_ONLY] = "1"
        try:
            # s3prl's pre-training saves its command line as a Namespace, which is harmless.
            with torch.serialization.safe_globals([argparse.Namespace]):
                yield
        finally:
            if before is None:
                del os.environ[FORCE_WEIGHTS_ONLY]
            else:
                os.environ[FORCE_WEIGHTS_ONLY] = before
            sys.meta_path.remove(finder)
            for module in _s3prl_modules():
                if vars(module).get("eval") is checked:
                    del vars(module)["eval"]


def _s3prl_modules() -> list[ModuleType]:
    return [module for name, module in list(sys.modules.items()) if name.startswith(_PREFIX)]


def _make_checked_eval() -> Callable[..., Any]:
    """An `eval` that checks its argument first if this thread calls it."""
    thread = threading.get_ident()

    def checked_eval(
        source: Any,
        globals: dict[str, Any] | None = None,
        locals: Mapping[str, object] | None = None,
        /,
    ) -> Any:
        if threading.get_ident() == thread:
            _refuse_code(source)
        if globals is None:
            caller = sys._getframe(1)
            globals, locals = caller.f_globals, caller.f_locals
        return builtins.eval(source, globals, locals)

    return checked_eval


def _refuse_code(source: Any) -> None:
    try:
        nodes = list(ast.walk(ast.parse(str(source).strip(), mode="eval")))
    except SyntaxError:
        nodes = []
    names = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    allowed = nodes and all(isinstance(node, _ALLOWED_SYNTAX) for node in nodes)
    if not allowed or any(name.startswith("__") for name in names):
        raise UserError(
            f"A setting in the checkpoint is code and was not executed: {str(source)[:80]!r}.",
            where="settings of the encoder",
            fix="Use the file from its publisher.",
            code="torch-file-refused",
        )
