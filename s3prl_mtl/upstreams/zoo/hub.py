"""Calling the hub functions of s3prl's zoo: one module imported, nothing executed, errors told."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from s3prl_mtl.errors import UserError
from s3prl_mtl.s3prl_compat.stand_ins import set_audio_backend
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams.zoo.safe_eval import nothing_executed

TAKES_CHECKPOINT = ("_local", "_custom", "_url", "customized_upstream")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""What a model of huggingface.co can be called."""


def zoo_names() -> dict[str, str]:
    """The upstreams of the installed s3prl: name -> module; empty without s3prl.

    The hub files are read, not imported, because importing all of them takes long and some fail.
    """
    folder = _zoo_folder()
    names: dict[str, str] = {}
    if folder is None:
        return names
    for module in pkgutil.iter_modules([str(folder)]):
        hub_file = folder / module.name / "hubconf.py"
        if not module.ispkg or not hub_file.is_file():
            continue
        for statement in ast.parse(hub_file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.FunctionDef) and not statement.name.startswith("_"):
                names[statement.name] = module.name
    return names


def wraps_transformers(module: str) -> bool:
    """Whether a module's checkpoint is a folder of transformers, or a name of huggingface.co."""
    return module.startswith("hf_")


def import_hub(module: str) -> Any:
    """The hub file of one module of the zoo, imported."""
    ensure_torchaudio()
    torchaudio: Any = importlib.import_module("torchaudio")
    lacks = not hasattr(torchaudio, "set_audio_backend")
    if lacks:
        # There are no backends to choose from any longer, and `byol_s` does when it is imported.
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
    """What s3prl's hub function of that name returns.

    Args:
        name: of the function.
        module: that has it, see :func:`zoo_names`.
        ckpt: the checkpoint given to it, if any.
        model_config: the settings given to it, if any.
        folder: for the config file, which s3prl reads while it builds the model.

    Raises:
        UserError: it cannot be imported, takes no checkpoint, or fails for any reason.
    """
    settings: dict[str, str] = {}
    if ckpt is not None:
        settings["ckpt"] = ckpt
    if model_config is not None:
        path = folder / "model_config.yaml"
        path.write_text(yaml.safe_dump(dict(model_config)), encoding="utf-8")
        settings["model_config"] = str(path)
    try:
        make = getattr(import_hub(module), name)
        if ckpt is not None:
            _check_takes_checkpoint(name, make)
        with nothing_executed():
            expert: nn.Module = make(**settings)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        # Anything may go wrong in a stranger's model: a missing package, no network, its own bug.
        if ckpt is not None and wraps_transformers(module):
            # Of a name s3prl says in the end that another model's settings are not there.
            raise _no_transformers(
                f"The folder {ckpt} could not be loaded with transformers ({_reason(error)})."
                if os.path.isdir(ckpt)
                else f"{ckpt} is no folder here, and could not be loaded from huggingface.co."
            ) from error
        raise UserError(
            f"s3prl's upstream {name!r} could not be loaded ({_reason(error)}).",
            where=f"module s3prl.upstream.{module}",
            fix=_remedy(error, ckpt, model_config),
        ) from error
    return expert


def cannot_encode(name: str, module: str, error: Exception) -> UserError:
    """For a model that was built and fails on the first waveform."""
    return UserError(
        f"s3prl's upstream {name!r} was loaded and cannot encode a waveform ({_reason(error)}).",
        where=f"module s3prl.upstream.{module}",
        fix="Install what it needs, or choose another upstream.",
    )


def _reason(error: BaseException) -> str:
    first = (str(error).splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first[:300]}"


def _check_takes_checkpoint(name: str, make: Callable[..., nn.Module]) -> None:
    """s3prl's functions swallow a checkpoint that they have no use for, and take their own."""
    takes = "ckpt" in inspect.signature(make).parameters
    if not takes and not name.endswith(TAKES_CHECKPOINT):
        raise UserError(
            f"The upstream {name!r} takes no checkpoint of yours.",
            where="-k",
            fix="Leave out -k, or choose an upstream whose name ends in _local.",
        )


def check_transformers(ckpt: str) -> None:
    """Refuse what is no encoder of transformers.

    s3prl goes on with another model's feature extractor, which it downloads, and of that its error
    speaks in the end.

    Raises:
        UserError: a file, a folder without the two settings files, a path that is not there.
    """
    if os.path.isdir(ckpt):
        for needed in ("config.json", "preprocessor_config.json"):
            if not os.path.isfile(os.path.join(ckpt, needed)):
                raise _no_transformers(f"The folder {ckpt} has no {needed}.")
    elif os.path.exists(ckpt):
        raise _no_transformers(f"{ckpt} is a file, and a folder of transformers is needed.")
    elif not HUB_NAME.fullmatch(ckpt):
        raise _no_transformers(f"{ckpt} is neither a folder nor a name of huggingface.co.")


def _no_transformers(what: str) -> UserError:
    return UserError(
        what,
        where="-k",
        fix="Give the path of a folder to which `save_pretrained` wrote the model and its feature "
        "extractor; or a name of huggingface.co, where there is a network.",
    )


def _remedy(error: BaseException, ckpt: str | None, model_config: Mapping[str, Any] | None) -> str:
    text = str(error)
    if isinstance(error, TypeError) and "'ckpt'" in text and ckpt is None:
        return "Give its checkpoint with -k."
    if isinstance(error, TypeError) and "'model_config'" in text and model_config is None:
        return "Give its config file with -g."
    if isinstance(error, OSError):
        return "Download its checkpoint where there is a network, or give a local one with -k."
    return "Install what it needs, or choose another upstream."


def _zoo_folder() -> Path | None:
    found = importlib.util.find_spec("s3prl")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "upstream"
    return folder if folder.is_dir() else None
