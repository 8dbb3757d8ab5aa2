"""Upstreams of s3prl's own zoo, one module at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.upstreams.base import HiddenStates, Upstream, check_waveforms
from s3prl_mtl.upstreams.unpadded import encode_by_length, probe, sees_batch
from s3prl_mtl.upstreams.zoo.files import downloads, keep_files, keep_transformers, write_kept
from s3prl_mtl.upstreams.zoo.hub import (
    build,
    cannot_encode,
    check_transformers,
    wraps_transformers,
    zoo_names,
)
from s3prl_mtl.upstreams.zoo.huggingface import switch_off
from s3prl_mtl.upstreams.zoo.renaming import rename_state

__all__ = ["ZooUpstream", "load_from_zoo", "rebuild_from_zoo", "zoo_names"]


class ZooUpstream(Upstream):
    """An upstream of s3prl behind our interface.

    s3prl pads a batch, and many models of the zoo let an utterance see the padding. Here only
    waveforms of the same length go through a model together, so that there is none, and one at a
    time where they see each other all the same: features are those that s3prl gives each utterance
    alone. For the same reason batch normalisation keeps its statistics in training. LayerDrop and
    masking are off, as in s3prl's multi-task branch.

    In checkpoints the parameters have the names that s3prl's expert gives them.

    Args:
        name: the name in the zoo, such as ``fbank``.
        expert: the object that s3prl's hub function returned.
        ckpt: the checkpoint that it was made from, if one was given.
        model_config: the settings that it was made from, if any.
        files: what it was made from, without weights, by path or URL; see
            :func:`~s3prl_mtl.upstreams.zoo.files.keep_files`.
        one_by_one: utterances of one length see each other in this model; None to find it out,
            for which it needs its weights.
    """

    def __init__(
        self,
        name: str,
        expert: nn.Module,
        ckpt: str | None = None,
        model_config: Mapping[str, Any] | None = None,
        files: Mapping[str, Any] | None = None,
        one_by_one: bool | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.ckpt = ckpt
        self.model_config = dict(model_config) if model_config is not None else None
        self.files = dict(files or {})
        self.expert = expert.eval()
        for module in expert.modules():
            if isinstance(getattr(module, "layerdrop", None), float):
                module.layerdrop = 0.0  # type: ignore[assignment]
            if hasattr(getattr(module, "config", None), "apply_spec_augment"):
                switch_off(module.config)
        rename_state(self, ["expert.model.", "expert."])
        stated = getattr(expert, "get_downsample_rates", None)
        stated_rate = int(stated("hidden_states")) if callable(stated) else None
        width, states, rate = probe(self._encode, name, f"-u {name}", stated_rate)
        self.hidden_size, self.num_hidden_states, self.downsample_rate = width, states, rate
        self.one_by_one = sees_batch(self._encode) if one_by_one is None else one_by_one

    @property
    def checkpoint_info(self) -> dict[str, Any]:
        """Plain values from which :func:`rebuild_from_zoo` makes the upstream again."""
        return {
            "kind": "zoo",
            "name": self.name,
            "ckpt": self.ckpt,
            "model_config": self.model_config,
            "files": self.files,
            "one_by_one": self.one_by_one,
        }

    def s3prl_state_dict(self) -> dict[str, Tensor]:
        """The expert's own state dict; that of `tera` for one begins with `transformer.`."""
        return dict(self.expert.state_dict())

    def train(self, mode: bool = True) -> ZooUpstream:
        """Dropout on or off; batch normalisation uses the statistics it came with either way."""
        super().train(mode)
        for module in self.expert.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, wavs: list[Tensor]) -> HiddenStates:
        """Waveforms ``(samples_i,)`` -> packed hidden states; see :class:`Upstream`."""
        check_waveforms(wavs)
        return encode_by_length(wavs, self._encode, self.name, self.one_by_one)

    def _encode(self, wavs: list[Tensor]) -> list[Tensor]:
        result = self.expert(wavs)
        states = result.get("hidden_states")
        return list(states) if states is not None else [result["last_hidden_state"]]


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
        ckpt: a local checkpoint, for those of the zoo that take one (``wavlm_local``), or its URL.
        cache_dir: where s3prl keeps what it downloads; None for its own choice.
        model_config: settings for those of the zoo that take a config file (``baseline_local``).

    Raises:
        UserError: s3prl is not installed, has no such upstream, or could not load it.
    """
    module = _module_of(name)
    local = None if ckpt is None else str(ckpt)
    if local is not None and os.path.exists(os.path.expanduser(local)):
        local = os.path.abspath(os.path.expanduser(local))
    elif local is not None and "://" not in local and not wraps_transformers(module):
        raise UserError(
            f"The checkpoint {local} does not exist.", where="-k", fix="Give the path of a file."
        )
    if local is not None and wraps_transformers(module):
        check_transformers(local)
    with (
        tempfile.TemporaryDirectory() as folder,
        downloads(None if cache_dir is None else Path(cache_dir)) as downloaded,
    ):
        expert = build(name, module, local, model_config, Path(folder))
    given = {} if local is None or not os.path.isfile(local) else {local: Path(local)}
    files = keep_files({**downloaded, **given})
    if local is not None and wraps_transformers(module):
        files[local] = keep_transformers(expert)
    try:
        return ZooUpstream(name, expert, local, model_config, files)
    except UserError:
        raise
    except Exception as error:
        raise cannot_encode(name, module, error) from error


def rebuild_from_zoo(info: Mapping[str, Any]) -> ZooUpstream:
    """An upstream of the zoo from its ``checkpoint_info``; its parameters are yet to be loaded.

    The files that it was made from are not looked for: what was kept of them takes their place.

    Raises:
        UserError: s3prl is not installed, or cannot build it.
    """
    name, ckpt, model_config = info["name"], info["ckpt"], info["model_config"]
    files = dict(info.get("files") or {})
    if info.get("skeleton") is not None:  # Checkpoints of 0.1 have that of a local file alone.
        files[ckpt] = {"skeleton": info["skeleton"]}
    module = _module_of(name)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        path = ckpt
        if ckpt in files and "://" not in ckpt:
            path = str(Path(folder) / Path(ckpt).name)
            write_kept(files[ckpt], Path(path))
        with downloads(Path(cache), files):
            expert = build(name, module, path, model_config, Path(folder))
    return ZooUpstream(name, expert, ckpt, model_config, files, info.get("one_by_one", False))


def _module_of(name: str) -> str:
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
    return names[name]
