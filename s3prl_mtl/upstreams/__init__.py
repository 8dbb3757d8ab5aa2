"""Speech encoders by name (HuBERT, Hugging Face, s3prl's zoo), and the featurizer."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.registry.plugins import discover_upstreams, find_upstream
from s3prl_mtl.upstreams.base import HiddenStates, Mask, MaskedUtterance, Upstream
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
from s3prl_mtl.upstreams.zoo.s3prl_hub import zoo_names
from s3prl_mtl.upstreams.zoo.s3prl_upstream import load_s3prl, rebuild_s3prl, zoo_module

__all__ = [
    "Featurizer",
    "HiddenStates",
    "Hubert",
    "HubertConfig",
    "Mask",
    "MaskedUtterance",
    "Upstream",
    "check_upstream",
    "hubert_from_state",
    "load_upstream",
    "read_fairseq_checkpoint",
    "rebuild_upstream",
    "write_fairseq_checkpoint",
]


def load_upstream(
    name: str, ckpt: str | os.PathLike[str] | None = None, **options: Any
) -> Upstream:
    """Load an upstream by name: of a plugin, of Hugging Face, or of s3prl's zoo.

    Args:
        name: ``hubert``, ``hubert_tiny`` or another entry point in ``s3prl_mtl.upstreams``;
            ``hf:`` followed by the path or name of a model of Hugging Face, with ``@REVISION``
            after a name; or a name in the zoo such as ``fbank``.
        ckpt: a local checkpoint to use instead of the upstream's own.
        options: of the upstream, such as ``layerdrop`` or ``cache_dir``; unknown ones are errors.

    Returns:
        The upstream in evaluation mode; `train()` enables dropout.

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
    check_upstream(name)
    _refuse_unknown_options(name, options, load_s3prl)
    return load_s3prl(name, ckpt, **options).eval()


def check_upstream(name: str, ckpt: str | os.PathLike[str] | None = None) -> None:
    """Check the name of an upstream and the path of its checkpoint, without loading anything.

    Args:
        name: as for `load_upstream`; names of Hugging Face are not looked up.
        ckpt: a local file or folder.

    Raises:
        UserError: an unknown name, or a path that does not exist.
    """
    if ckpt is not None and not os.path.exists(ckpt):
        raise UserError(
            f"The checkpoint {ckpt} does not exist.",
            where=f"-k {ckpt}",
            fix="Give the path of a file.",
            code="checkpoint-missing",
        )
    if name.startswith(HUGGING_FACE) or find_upstream(name) is not None:
        return
    in_zoo = zoo_names()
    if in_zoo and name not in in_zoo:
        raise UserError(
            f"Neither a plugin nor s3prl's zoo has an upstream {name!r}.",
            where=f"-u {name}",
            fix=f"For this path, give -u hubert -k {name}, or -u {HUGGING_FACE}{name} for a folder "
            "of transformers with another model."
            if os.path.exists(os.path.expanduser(name))
            else nearest(name, [*discover_upstreams(), *in_zoo])
            + " `s3prl-mtl upstreams --all` lists them.",
            code="unknown-name",
        )
    zoo_module(name)  # the error that names the missing package


def rebuild_upstream(info: Mapping[str, Any], trust_remote_code: bool = False) -> Upstream:
    """Build an upstream from its ``checkpoint_info``; load its parameters afterwards.

    Args:
        info: as in a checkpoint.
        trust_remote_code: execute modelling code of the repository that it was loaded from.

    Raises:
        UserError: unknown kind of upstream; or one that needs code which may not be executed.
    """
    kind = info.get("kind")
    if kind == "hubert":
        return Hubert(HubertConfig.from_dict(info["config"]), info["fairseq_header"])
    if kind == "zoo":
        return rebuild_s3prl(info)
    if kind == "transformers":
        return rebuild_transformers(info, trust_remote_code)
    raise UserError(
        f"The checkpoint has an upstream of unknown kind {kind!r}.",
        where="settings of the upstream in the checkpoint",
        fix="Load it with the version of s3prl-mtl that wrote it.",
        code="checkpoint-format",
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
                where=f"option {option!r} of the upstream {name!r}",
                fix=nearest(option, known) if known else "Leave it out.",
                code="unknown-key",
            )
