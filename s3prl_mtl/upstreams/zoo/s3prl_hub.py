"""Call the hub functions of s3prl's zoo; import one module at a time, never `s3prl.hub`."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from s3prl_mtl.errors import UserError, error_summary
from s3prl_mtl.s3prl_compat.folders import installed_s3prl
from s3prl_mtl.s3prl_compat.stand_ins import set_audio_backend
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams.zoo.safe_eval import nothing_executed

TAKES_CHECKPOINT = ("_local", "_custom", "_url", "customized_upstream")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""The form of the names of models on huggingface.co."""


def zoo_names() -> dict[str, str]:
    """The upstreams of the installed s3prl: name -> module; empty without s3prl.

    The hub files are parsed, not imported: importing all of them takes long, and some fail.
    """
    package = installed_s3prl()
    names: dict[str, str] = {}
    if package is None:
        return names
    folder = package / "upstream"
    for module in pkgutil.iter_modules([str(folder)]):
        hub_file = folder / module.name / "hubconf.py"
        if not module.ispkg or not hub_file.is_file():
            continue
        for statement in ast.parse(hub_file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.FunctionDef) and not statement.name.startswith("_"):
                names[statement.name] = module.name
    return names


def wraps_transformers(module: str) -> bool:
    """Whether checkpoints of a module are folders of transformers or names on huggingface.co."""
    return module.startswith("hf_")


def import_hub(module: str) -> Any:
    """Import the hub file of one module of the zoo."""
    ensure_torchaudio()
    torchaudio: Any = importlib.import_module("torchaudio")
    lacks = not hasattr(torchaudio, "set_audio_backend")
    if lacks:
        # torchaudio dropped this function, and `byol_s` calls it when it is imported.
        torchaudio.set_audio_backend = set_audio_backend
    try:
        return importlib.import_module(f"s3prl.upstream.{module}.hubconf")
    finally:
        if lacks:
            del torchaudio.set_audio_backend


def build(
    name: str,
    module: str,
    ckpt: str | None,
    model_config: Mapping[str, Any] | None,
    folder: Path,
) -> nn.Module:
    """Call a hub function of s3prl.

    Args:
        name: of the function.
        module: that contains it, see :func:`zoo_names`.
        ckpt: the checkpoint to pass, if any.
        model_config: the settings to pass, if any.
        folder: where to write the settings; s3prl reads them while it builds the model.

    Raises:
        UserError: it cannot be imported, takes no checkpoint, or fails for any reason.
    """
    arguments: dict[str, str] = {}
    if ckpt is not None:
        arguments["ckpt"] = ckpt
    if model_config is not None:
        path = folder / "model_config.yaml"
        path.write_text(yaml.safe_dump(dict(model_config)), encoding="utf-8")
        arguments["model_config"] = str(path)
    try:
        make = getattr(import_hub(module), name)
        if ckpt is not None:
            _check_takes_checkpoint(name, make)
        with nothing_executed():
            expert: nn.Module = make(**arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        # A missing package, no network, a bug in the model: any error may be raised here.
        if ckpt is not None and wraps_transformers(module):
            # s3prl's own error would be about another model's feature extractor.
            raise _not_transformers(
                f"The folder {ckpt} could not be loaded with transformers ({error_summary(error)})."
                if os.path.isdir(ckpt)
                else f"{ckpt} is not a folder and could not be loaded from huggingface.co.",
                ckpt,
            ) from error
        raise UserError(
            f"s3prl's upstream {name!r} could not be loaded ({error_summary(error)}).",
            where=f"module s3prl.upstream.{module}",
            fix=_remedy(error, ckpt, model_config),
            code="upstream-failed",
        ) from error
    return expert


def check_transformers(ckpt: str) -> None:
    """Check that a checkpoint is a folder of transformers, or may be a name on huggingface.co.

    Without this, s3prl would download another model's feature extractor and fail later.

    Raises:
        UserError: it is a file, a folder without the two settings files, or does not exist.
    """
    if os.path.isdir(ckpt):
        for needed in ("config.json", "preprocessor_config.json"):
            if not os.path.isfile(os.path.join(ckpt, needed)):
                raise _not_transformers(f"The folder {ckpt} has no {needed}.", ckpt)
    elif os.path.exists(ckpt):
        raise _not_transformers(f"{ckpt} is a file; a folder of transformers is needed.", ckpt)
    elif not HUB_NAME.fullmatch(ckpt):
        raise _not_transformers(f"{ckpt} is neither a folder nor a name on huggingface.co.", ckpt)


def _check_takes_checkpoint(name: str, make: Callable[..., nn.Module]) -> None:
    """Refuse a checkpoint that the hub function would ignore."""
    takes = "ckpt" in inspect.signature(make).parameters
    if not takes and not name.endswith(TAKES_CHECKPOINT):
        raise UserError(
            f"The upstream {name!r} takes no checkpoint.",
            where="-k",
            fix="Leave out -k, or choose an upstream with a name that ends in _local.",
            code="conflicting-options",
        )


def _not_transformers(what: str, ckpt: str) -> UserError:
    return UserError(
        what,
        where=f"-k {ckpt}",
        fix="Give a folder to which `save_pretrained` wrote the model and its feature extractor, "
        "or, with a network, a name on huggingface.co.",
        code="checkpoint-format",
    )


def _remedy(error: BaseException, ckpt: str | None, model_config: Mapping[str, Any] | None) -> str:
    text = str(error)
    if isinstance(error, TypeError) and "'ckpt'" in text and ckpt is None:
        return "Give its checkpoint with -k."
    if isinstance(error, TypeError) and "'model_config'" in text and model_config is None:
        return "Give its config file with -g."
    if isinstance(error, OSError):
        return "Download its checkpoint where there is a network, or give a local one with -k."
    if isinstance(error, KeyError) and model_config is not None:
        return "Its config file (-g) lacks this setting; s3prl's package has examples."
    return "Install the packages it needs, or choose another upstream."
