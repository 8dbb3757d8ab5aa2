"""Encoders of speech: HuBERT, fairseq's checkpoints, s3prl's zoo, and the featurizer."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.registry.plugins import discover_upstreams, find_upstream
from s3prl_mtl.upstreams.base import HiddenStates, Upstream
from s3prl_mtl.upstreams.featurizer import Featurizer
from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.encoder import Hubert, hubert_from_state
from s3prl_mtl.upstreams.hubert.fairseq_file import (
    read_fairseq_checkpoint,
    write_fairseq_checkpoint,
)
from s3prl_mtl.upstreams.zoo.huggingface import (
    HUGGING_FACE,
    load_transformers,
    rebuild_transformers,
)
from s3prl_mtl.upstreams.zoo.s3prl_upstreams import load_from_zoo, rebuild_from_zoo, zoo_names

__all__ = [
    "Featurizer",
    "HiddenStates",
    "Hubert",
    "HubertConfig",
    "Upstream",
    "hubert_from_state",
    "load_upstream",
    "read_fairseq_checkpoint",
    "rebuild_upstream",
    "write_fairseq_checkpoint",
]


def load_upstream(
    name: str, ckpt: str | os.PathLike[str] | None = None, **options: Any
) -> Upstream:
    """An upstream by name: of this package or another one, of Hugging Face, or of s3prl's zoo.

    Args:
        name: ``hubert``, ``hubert_tiny``, the name of any entry point in
            ``s3prl_mtl.upstreams``, ``hf:`` and the path or the name of a model of Hugging Face,
            or a name of the zoo such as ``fbank``.
        ckpt: a local checkpoint instead of the upstream's own.
        options: settings of the upstream, such as ``layerdrop`` or ``cache_dir``; one that it does
            not have is an error.

    Returns:
        the upstream in evaluation mode; `train()` turns its dropout on.

    Raises:
        UserError: an unknown name or option, or an upstream that cannot be loaded.
    """
    if name.startswith(HUGGING_FACE):
        _refuse_unknown_options(name, options, load_transformers)
        return load_transformers(name.removeprefix(HUGGING_FACE), ckpt, **options).eval()
    factory = find_upstream(name)
    if factory is not None:
        _refuse_unknown_options(name, options, factory)
        upstream: Upstream = factory(ckpt, **options)
        return upstream.eval()
    in_zoo = zoo_names()
    if in_zoo and name not in in_zoo:
        raise UserError(
            f"There is no upstream {name!r}, neither among the plugins nor in s3prl's zoo.",
            where=f"-u {name}",
            fix=nearest(name, [*discover_upstreams(), *in_zoo]),
        )
    _refuse_unknown_options(name, options, load_from_zoo)
    return load_from_zoo(name, ckpt, **options).eval()


def rebuild_upstream(info: Mapping[str, Any]) -> Upstream:
    """An upstream from its ``checkpoint_info``; its parameters are yet to be loaded.

    Raises:
        UserError: an upstream of a kind that cannot be rebuilt.
    """
    kind = info.get("kind")
    if kind == "hubert":
        return Hubert(HubertConfig.from_dict(info["config"]), info["fairseq_header"])
    if kind == "zoo":
        return rebuild_from_zoo(info)
    if kind == "transformers":
        return rebuild_transformers(info)
    raise UserError(
        f"The checkpoint holds an upstream of kind {kind!r}.",
        where="settings of the upstream in the checkpoint",
        fix="Load it with the version of s3prl-mtl that wrote it.",
    )


def _refuse_unknown_options(
    name: str, options: Mapping[str, Any], factory: Callable[..., Upstream]
) -> None:
    parameters = inspect.signature(factory).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [option for option in parameters if option not in ("ckpt", "name")]
    for option in options:
        if option not in known:
            raise UserError(
                f"The upstream {name!r} has no option {option!r}.",
                where="options of the upstream",
                fix=nearest(option, known) if known else "Leave it out.",
            )
