"""Upstreams of s3prl's own zoo, one module at a time."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import os
import pkgutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams.alone import encode_by_length, probe
from s3prl_mtl.upstreams.base import HiddenStates, Upstream, check_waveforms
from s3prl_mtl.upstreams.renaming import rename_state
from s3prl_mtl.upstreams.skeleton import skeleton_of, write_skeleton

TAKES_CHECKPOINT = ("_local", "_custom", "_url", "customized_upstream")
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's own switch: `torch.load(weights_only=False)` is no exception to it."""


class ZooUpstream(Upstream):
    """An upstream of s3prl behind our interface.

    s3prl pads a batch, and many models of the zoo let an utterance see the padding. Here only
    waveforms of the same length go through a model together, so that there is none: features are
    those that s3prl gives each utterance alone. LayerDrop is off, as in s3prl's multi-task branch.

    In checkpoints the parameters have the names that s3prl's expert gives them.

    Args:
        name: the name in the zoo, such as ``fbank``.
        expert: the object that s3prl's hub function returned.
        ckpt: the local checkpoint that it was made from, if any.
        model_config: the settings that it was made from, if any.
        skeleton: that checkpoint without its weights, if it could be read.
    """

    def __init__(
        self,
        name: str,
        expert: nn.Module,
        ckpt: str | None = None,
        model_config: Mapping[str, Any] | None = None,
        skeleton: Any | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.ckpt = ckpt
        self.model_config = dict(model_config) if model_config is not None else None
        self.skeleton = skeleton
        self.expert = expert.eval()
        for module in expert.modules():
            if isinstance(getattr(module, "layerdrop", None), float):
                module.layerdrop = 0.0  # type: ignore[assignment]
        rename_state(self, ["expert.model.", "expert."])
        stated = getattr(expert, "get_downsample_rates", None)
        stated_rate = int(stated("hidden_states")) if callable(stated) else None
        width, states, rate = probe(self._encode, name, f"-u {name}", stated_rate)
        self.hidden_size, self.num_hidden_states, self.downsample_rate = width, states, rate

    @property
    def checkpoint_info(self) -> dict[str, Any]:
        """Plain values from which :func:`rebuild_from_zoo` makes the upstream again."""
        info = {
            "kind": "zoo",
            "name": self.name,
            "ckpt": self.ckpt,
            "model_config": self.model_config,
        }
        return info if self.skeleton is None else {**info, "skeleton": self.skeleton}

    def forward(self, wavs: list[Tensor]) -> HiddenStates:
        """Waveforms ``(samples_i,)`` -> packed hidden states; see :class:`Upstream`."""
        check_waveforms(wavs)
        return encode_by_length(wavs, self._encode, self.name)

    def _encode(self, wavs: list[Tensor]) -> list[Tensor]:
        result = self.expert(wavs)
        states = result.get("hidden_states")
        return list(states) if states is not None else [result["last_hidden_state"]]


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


def load_from_zoo(
    name: str,
    ckpt: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> ZooUpstream:
    """Load an upstream of s3prl by its name there.

    Args:
        name: such as ``fbank``, ``mfcc`` or ``wavlm_base``.
        ckpt: a local checkpoint, for those of the zoo that take one (``wavlm_local``).
        cache_dir: where s3prl keeps what it downloads; None for its own choice.
        model_config: settings for those of the zoo that take a config file (``baseline_local``).

    Raises:
        UserError: s3prl is not installed, has no such upstream, or could not load it.
    """
    names = zoo_names()
    if not names:
        raise UserError(
            f"The upstream {name!r} is no plugin, and s3prl, whose zoo might have it, is not "
            "installed.",
            where=f"-u {name}",
            fix="Install it with `pip install 's3prl-mtl[s3prl]'`.",
        )
    if name not in names:
        raise UserError(
            f"s3prl has no upstream {name!r}.", where=f"-u {name}", fix=nearest(name, list(names))
        )
    local = None if ckpt is None else str(ckpt)
    if local is not None and os.path.exists(os.path.expanduser(local)):
        local = os.path.abspath(os.path.expanduser(local))
    elif local is not None and "://" not in local and not names[name].startswith("hf_"):
        raise UserError(
            f"The checkpoint {local} does not exist.", where="-k", fix="Give the path of a file."
        )
    skeleton = skeleton_of(Path(local)) if local is not None and os.path.isfile(local) else None
    with tempfile.TemporaryDirectory() as folder:
        expert = _build(name, names[name], local, cache_dir, model_config, Path(folder))
    return ZooUpstream(name, expert, local, model_config, skeleton)


def rebuild_from_zoo(info: Mapping[str, Any]) -> ZooUpstream:
    """An upstream of the zoo from its ``checkpoint_info``; its parameters are yet to be loaded.

    Where the local checkpoint that it was made from is gone, its skeleton takes its place.

    Raises:
        UserError: s3prl is not installed, or cannot build it.
    """
    name, ckpt, skeleton = info["name"], info["ckpt"], info.get("skeleton")
    model_config = info["model_config"]
    if ckpt is None or skeleton is None:
        return load_from_zoo(name, ckpt, model_config=model_config)
    names = zoo_names()
    if name not in names:
        return load_from_zoo(name, ckpt, model_config=model_config)  # Says what is missing.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(ckpt).name
        write_skeleton(skeleton, path)
        expert = _build(name, names[name], str(path), None, model_config, Path(folder))
    return ZooUpstream(name, expert, ckpt, model_config, skeleton)


def _build(
    name: str,
    module: str,
    ckpt: str | None,
    cache_dir: str | os.PathLike[str] | None,
    model_config: Mapping[str, Any] | None,
    folder: Path,
) -> nn.Module:
    """What s3prl's hub function of that name returns; `folder` is for its config file."""
    ensure_torchaudio()
    settings: dict[str, str] = {}
    if ckpt is not None:
        settings["ckpt"] = ckpt
    if model_config is not None:
        # s3prl takes settings from a file, and only while it builds the model.
        path = folder / "model_config.yaml"
        path.write_text(yaml.safe_dump(dict(model_config)), encoding="utf-8")
        settings["model_config"] = str(path)
    try:
        hub = importlib.import_module(f"s3prl.upstream.{module}.hubconf")
        if cache_dir is not None:
            importlib.import_module("s3prl.util.download").set_dir(str(cache_dir))
        make = getattr(hub, name)
        if ckpt is not None:
            _check_takes_checkpoint(name, make)
        with _nothing_executed():
            expert: nn.Module = make(**settings)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        # Anything may go wrong in a stranger's model: a missing package, no network, its own bug.
        reason = (str(error).splitlines() or ["no message"])[0]
        raise UserError(
            f"s3prl's upstream {name!r} could not be loaded ({type(error).__name__}: {reason}).",
            where=f"module s3prl.upstream.{module}",
            fix=_remedy(error, ckpt, model_config),
        ) from error
    return expert


def _check_takes_checkpoint(name: str, make: Callable[..., nn.Module]) -> None:
    """s3prl's functions swallow a checkpoint that they have no use for, and take their own."""
    takes = "ckpt" in inspect.signature(make).parameters
    if not takes and not name.endswith(TAKES_CHECKPOINT):
        raise UserError(
            f"The upstream {name!r} takes no checkpoint of yours.",
            where="-k",
            fix="Leave out -k, or choose an upstream whose name ends in _local.",
        )


@contextmanager
def _nothing_executed() -> Iterator[None]:
    """Checkpoints are read without executing what they hold, also by models that would allow it."""
    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    try:
        # Checkpoints of s3prl's own pre-training hold their command line, which is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            yield
    finally:
        if before is None:
            del os.environ[FORCE_WEIGHTS_ONLY]
        else:
            os.environ[FORCE_WEIGHTS_ONLY] = before


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
