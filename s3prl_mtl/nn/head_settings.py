"""Build a head from the `modelrc` block of a task's settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.nn.frame_level import FrameLevel
from s3prl_mtl.nn.recurrent import RNNs
from s3prl_mtl.nn.utterance_level import UtteranceLevel

HEADS: dict[str, type[nn.Module]] = {
    "FrameLevel": FrameLevel,
    "UtteranceLevel": UtteranceLevel,
    "RNNs": RNNs,
}


def head_from_settings(
    input_dim: int,
    output_dim: int,
    settings: Mapping[str, Any],
    upstream_rate: int = 320,
    where: str = "modelrc",
) -> nn.Module:
    """Build the head named by `settings["select"]` with the options in the block of that name.

    The keys are those of s3prl's task configs, for example
    `{"select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"}}`. Other keys
    (`project_dim`, options of heads that are not selected, ...) are ignored.

    Args:
        input_dim: width of the features.
        output_dim: number of outputs per frame, or per utterance.
        settings: the `modelrc` block.
        upstream_rate: samples per frame of the features; used by `RNNs`.
        where: key of the block, for errors.

    Returns:
        A module called with features (B, T, input_dim) and lengths (B,): `FrameLevel` and `RNNs`
        return logits (B, T', output_dim) with their lengths, `UtteranceLevel` logits
        (B, output_dim).

    Raises:
        UserError: unknown head, unknown option, or missing option.
    """
    name = str(settings.get("select"))
    if name not in HEADS:
        raise UserError(
            f"Unknown head {name!r}.",
            where=f"{where}.select",
            fix=nearest(name, list(HEADS)),
            code="unknown-name",
        )
    options = dict(settings.get(name) or {})
    signature = inspect.signature(HEADS[name])
    fixed = {"self", "input_dim", "output_dim", "upstream_rate"}
    parameters = {key: p for key, p in signature.parameters.items() if key not in fixed}
    for key in options:
        if key not in parameters:
            raise UserError(
                f"Unknown option {key!r} of {name}.",
                where=f"{where}.{name}.{key}",
                fix=nearest(str(key), list(parameters)),
                code="unknown-key",
            )
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise UserError(
            f"Missing options of {name}: {', '.join(missing)}.",
            where=f"{where}.{name}",
            fix=f"Set {', '.join(missing)}.",
            code="missing-option",
        )
    if "upstream_rate" in signature.parameters:
        options["upstream_rate"] = upstream_rate
    return HEADS[name](input_dim, output_dim, **options)
