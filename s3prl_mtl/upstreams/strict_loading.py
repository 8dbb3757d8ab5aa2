"""Load a state dict strictly; report mismatches in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from s3prl_mtl.errors import UserError

_SHOWN = 3
"""Names shown of each kind of mismatch."""


def load_strictly(
    module: nn.Module,
    weights: Mapping[str, Any],
    what: str,
    where: str,
    fix: str = "Use the upstream, its size and the settings of the task that it was saved with.",
) -> None:
    """Load weights whose names and shapes must all match.

    Args:
        module: the module.
        weights: its state dict.
        what: description of the module, for the error.
        where: source of the weights, for the error.
        fix: remedy, for the error.

    Raises:
        UserError: lists the first names that are missing, unexpected or of another shape; or a
            parameter is not finite.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as cause:
        reason = mismatch(module.state_dict(), weights) or str(cause).splitlines()[0]
        raise UserError(
            f"The weights do not fit {what}: {reason}.",
            where=where,
            fix=fix,
            code="checkpoint-mismatch",
        ) from cause
    check_finite(module, what, where)


def check_finite(module: nn.Module, what: str, where: str) -> None:
    """Refuse a module with a parameter that is NaN or infinite, or a buffer that is NaN.

    Buffers may be infinite: a best score, a mask of attention.

    Args:
        module: the module.
        what: description of the module, for the error.
        where: source of its weights, for the error.

    Raises:
        UserError: names the first such tensor.
    """
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            raise non_finite_weight(name, parameter, what, where)
    for name, buffer in module.named_buffers():
        if buffer.isnan().any():
            raise non_finite_weight(name, buffer, what, where)


def non_finite_weight(name: str, weight: Tensor, what: str, where: str) -> UserError:
    """The error of a weight that is not finite."""
    count = weight.numel() - int(weight.isfinite().sum())
    return UserError(
        f"{count} of {weight.numel()} values of {name} of {what} are not finite (NaN or infinite).",
        where=where,
        fix="Give another checkpoint: one from before the training failed, or a new download.",
        code="non-finite",
    )


def mismatch(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The first names of a state dict that are missing, unexpected or of another shape; or ""."""
    shapes = {name: _shape(value) for name, value in expected.items()}
    missing = [name for name in shapes if name not in found]
    unexpected = [name for name in found if name not in shapes]
    others = [
        f"{name} of shape {_shape(found[name])} instead of {shape}"
        for name, shape in shapes.items()
        if name in found and _shape(found[name]) != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": others}
    return "; ".join(f"{kind}: {_first(names)}" for kind, names in kinds.items() if names)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
