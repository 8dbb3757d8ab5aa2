"""Upstreams of s3prl's own zoo."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from s3prl_mtl.errors import UserError, error_summary, nearest
from s3prl_mtl.upstreams.base import HiddenStates, Upstream, check_waveforms
from s3prl_mtl.upstreams.strict_loading import check_finite
from s3prl_mtl.upstreams.zoo.huggingface import disable_masking
from s3prl_mtl.upstreams.zoo.s3prl_hub import (
    build,
    check_transformers,
    wraps_transformers,
    zoo_names,
)
from s3prl_mtl.upstreams.zoo.state_names import strip_state_prefixes
from s3prl_mtl.upstreams.zoo.stored_files import (
    s3prl_downloads,
    store_files,
    store_transformers_folder,
    write_stored,
)
from s3prl_mtl.upstreams.zoo.unpadded import depends_on_batch, encode_by_length, probe


class S3prlUpstream(Upstream):
    """An upstream of s3prl's zoo.

    s3prl pads a batch, and in many models an utterance depends on the padding. Here only waveforms
    of equal length are encoded together, and one at a time where even these depend on each other:
    features are those that s3prl gives each utterance alone. For the same reason batch
    normalisation keeps its statistics in training. LayerDrop and masking are off, as in s3prl's
    multi-task branch.

    In checkpoints the parameters have the names that s3prl's expert gives them.

    Args:
        name: in the zoo, such as ``fbank``.
        expert: the module that s3prl's hub function returned.
        ckpt: the checkpoint that it was built from, if one was given.
        model_config: the settings that it was built from, if any.
        files: the files that it was built from, without weights, by path or URL; see
            :func:`~s3prl_mtl.upstreams.zoo.stored_files.store_files`.
        one_by_one: utterances of equal length depend on each other; None to find out, which
            requires the weights.
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
                disable_masking(module.config)
        strip_state_prefixes(self, ["expert.model.", "expert."])
        get_rate = getattr(expert, "get_downsample_rates", None)
        stated_rate = int(get_rate("hidden_states")) if callable(get_rate) else None
        shape = probe(self._encode, name, f"-u {name}", stated_rate)
        self.hidden_size = shape.hidden_size
        self.num_hidden_states = shape.num_hidden_states
        self.downsample_rate = shape.downsample_rate
        self.one_by_one = depends_on_batch(self._encode) if one_by_one is None else one_by_one

    @property
    def checkpoint_info(self) -> dict[str, Any]:
        """Plain values from which :func:`rebuild_s3prl` builds the upstream again."""
        return {
            "kind": "zoo",
            "name": self.name,
            "ckpt": self.ckpt,
            "model_config": self.model_config,
            "files": self.files,
            "one_by_one": self.one_by_one,
        }

    def s3prl_state_dict(self) -> dict[str, Tensor]:
        """The expert's own state dict; its prefixes differ, such as `transformer.` for `tera`."""
        return dict(self.expert.state_dict())

    def train(self, mode: bool = True) -> S3prlUpstream:
        """Switch dropout; batch normalisation always uses its stored statistics."""
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


def load_s3prl(
    name: str,
    ckpt: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> S3prlUpstream:
    """Load an upstream of s3prl by its name there.

    Args:
        name: such as ``fbank``, ``mfcc`` or ``wavlm_base``.
        ckpt: a local checkpoint or its URL, for upstreams that take one (``wavlm_local``).
        cache_dir: where s3prl keeps downloads; None for its own folder.
        model_config: settings, for upstreams that take a config file (``baseline_local``).

    Raises:
        UserError: s3prl is not installed, has no such upstream, or could not load it.
    """
    module = zoo_module(name)
    local = None if ckpt is None else str(ckpt)
    if local is not None and os.path.exists(os.path.expanduser(local)):
        local = os.path.abspath(os.path.expanduser(local))
    elif local is not None and "://" not in local and not wraps_transformers(module):
        raise UserError(
            f"The checkpoint {local} does not exist.",
            where=f"-k {local}",
            fix="Give the path of a file.",
            code="checkpoint-missing",
        )
    if local is not None and wraps_transformers(module):
        check_transformers(local)
    with (
        tempfile.TemporaryDirectory() as folder,
        s3prl_downloads(None if cache_dir is None else Path(cache_dir)) as downloaded,
    ):
        expert = build(name, module, local, model_config, Path(folder))
    given = {} if local is None or not os.path.isfile(local) else {local: Path(local)}
    check_finite(expert, f"the upstream {name!r}", local or f"the files that -u {name} downloads")
    files = store_files({**downloaded, **given})
    if local is not None and wraps_transformers(module):
        files[local] = store_transformers_folder(expert)
    try:
        return S3prlUpstream(name, expert, local, model_config, files)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"s3prl's upstream {name!r} was loaded but cannot encode a waveform "
            f"({error_summary(error)}).",
            where=f"module s3prl.upstream.{module}",
            fix="Install the packages it needs, or choose another upstream.",
            code="upstream-failed",
        ) from error


def rebuild_s3prl(info: Mapping[str, Any]) -> S3prlUpstream:
    """An upstream from its ``checkpoint_info``; load its parameters afterwards.

    The original files are not needed: their stored contents take their place.

    Raises:
        UserError: s3prl is not installed, or cannot build it.
    """
    name, ckpt, model_config = info["name"], info["ckpt"], info["model_config"]
    files = dict(info.get("files") or {})
    if info.get("skeleton") is not None:  # Format of 0.1: only the file given with -k.
        files[ckpt] = {"skeleton": info["skeleton"]}
    module = zoo_module(name)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        path = ckpt
        if ckpt in files and "://" not in ckpt:
            path = str(Path(folder) / Path(ckpt).name)
            write_stored(files[ckpt], Path(path))
        with s3prl_downloads(Path(cache), files):
            expert = build(name, module, path, model_config, Path(folder))
    return S3prlUpstream(name, expert, ckpt, model_config, files, info.get("one_by_one", False))


def zoo_module(name: str) -> str:
    """The module of s3prl that has an upstream.

    Raises:
        UserError: s3prl is not installed, or has no such upstream.
    """
    names = zoo_names()
    if not names:
        raise UserError(
            f"No plugin has the upstream {name!r}, and s3prl, which may have it, is not installed.",
            where=f"-u {name}",
            fix="Install it with `pip install 's3prl-mtl[s3prl]'`.",
            code="missing-package",
        )
    if name not in names:
        raise UserError(
            f"s3prl has no upstream {name!r}.",
            where=f"-u {name}",
            fix=nearest(name, list(names)),
            code="unknown-name",
        )
    return names[name]
