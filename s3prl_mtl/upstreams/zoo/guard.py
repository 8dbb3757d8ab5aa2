"""While s3prl builds a model: nothing that its checkpoint or its settings hold is executed."""

from __future__ import annotations

import argparse
import ast
import builtins
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from s3prl_mtl.errors import UserError

FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's own switch: `torch.load(weights_only=False)` is no exception to it."""

_ARITHMETIC = (
    ast.Expression,
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Dict,
    ast.BinOp,
    ast.UnaryOp,
    ast.operator,
    ast.unaryop,
    # The paths of s3prl's own modules: `self.model.encoder.layers[3]`.
    ast.Name,
    ast.Attribute,
    ast.Subscript,
    ast.expr_context,
)


@contextmanager
def nothing_executed() -> Iterator[None]:
    """Pickles give plain values, and `eval` in s3prl's modules no more than arithmetic.

    Their convolutions are texts such as ``[(512,10,5)] + [(512,3,2)] * 4``, which they evaluate.
    A call in one raises :class:`UserError`.
    """
    before, evaluate = os.environ.get(FORCE_WEIGHTS_ONLY), builtins.eval

    def calm(
        source: Any,
        globals: dict[str, Any] | None = None,
        locals: Mapping[str, object] | None = None,
        /,
    ) -> Any:
        caller = sys._getframe(1)
        if str(caller.f_globals.get("__name__")).startswith("s3prl."):
            _check(source)
        if globals is None:
            globals, locals = caller.f_globals, caller.f_locals
        return evaluate(source, globals, locals)

    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    builtins.eval = calm
    try:
        # Checkpoints of s3prl's own pre-training hold their command line, which is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            yield
    finally:
        builtins.eval = evaluate
        if before is None:
            del os.environ[FORCE_WEIGHTS_ONLY]
        else:
            os.environ[FORCE_WEIGHTS_ONLY] = before


def _check(source: Any) -> None:
    try:
        parts = list(ast.walk(ast.parse(str(source).strip(), mode="eval")))
    except SyntaxError:
        parts = []
    names = [part.attr for part in parts if isinstance(part, ast.Attribute)]
    calm = parts and all(isinstance(part, _ARITHMETIC) for part in parts)
    if not calm or any(name.startswith("__") for name in names):
        raise UserError(
            f"A setting in the checkpoint is code: {str(source)[:80]!r}. It was not executed.",
            where="settings of the encoder",
            fix="Take the file from its publisher.",
        )
