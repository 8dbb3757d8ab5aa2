"""Upstreams of s3prl's own zoo, one module at a time."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pkgutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams.base import HiddenStates, Upstream, check_waveforms

PROBE_SAMPLES = 16_000


class ZooUpstream(Upstream):
    """An upstream of s3prl behind our interface.

    s3prl gives padded hidden states ``(B, T_max, D)``; they are packed by cutting each utterance
    to its own frames. Where the zoo's model itself looks at padding, as fairseq's does, so does
    this; the encoders of this package do not.

    Args:
        name: the name in the zoo, such as ``fbank``.
        expert: the object that s3prl's hub function returned.
        ckpt: the local checkpoint that it was made from, if any.
        model_config: the settings that it was made from, if any.
    """

    def __init__(
        self,
        name: str,
        expert: nn.Module,
        ckpt: str | None = None,
        model_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.ckpt = ckpt
        self.model_config = dict(model_config) if model_config is not None else None
        self.expert = expert
        with torch.no_grad():
            states = self._padded([torch.zeros(PROBE_SAMPLES)])
        self.hidden_size = states[0].shape[-1]
        self.num_hidden_states = len(states)
        self.downsample_rate = int(expert.get_downsample_rates("hidden_states"))  # type: ignore[operator]

    @property
    def checkpoint_info(self) -> dict[str, Any]:
        return {
            "kind": "zoo",
            "name": self.name,
            "ckpt": self.ckpt,
            "model_config": self.model_config,
        }

    def forward(self, wavs: list[Tensor]) -> HiddenStates:
        """Waveforms ``(samples_i,)`` -> packed hidden states; see :class:`Upstream`."""
        check_waveforms(wavs)
        states = self._padded(wavs)
        longest = states[0].shape[1]
        most_samples = max(map(len, wavs))
        lengths = []
        for index, wav in enumerate(wavs):
            # s3prl pads the batch, so that only the longest utterance has all the frames.
            frames = round(longest - (most_samples - len(wav)) / self.downsample_rate)
            if frames < 1:
                raise UserError(
                    f"Utterance {index} of the batch has {len(wav)} samples, too few for one "
                    f"frame of {self.name}.",
                    where=f"waveform {index} of the {len(wavs)} given to the encoder",
                    fix="Leave out such short utterances.",
                )
            lengths.append(min(frames, longest))
        packed = [
            torch.cat([state[index, :frames] for index, frames in enumerate(lengths)])
            for state in states
        ]
        return HiddenStates(torch.stack(packed), lengths)

    def _padded(self, wavs: list[Tensor]) -> list[Tensor]:
        result = self.expert(wavs)
        states = result.get("hidden_states") or [result["last_hidden_state"]]
        widths = {state.shape[-1] for state in states}
        if len(widths) != 1:
            raise UserError(
                f"The hidden states of {self.name} differ in width: {sorted(widths)}.",
                where=f"-u {self.name}",
                fix="Choose another upstream; a weighted sum needs one width.",
            )
        return list(states)


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
    ensure_torchaudio()
    local = None if ckpt is None else str(ckpt)
    try:
        hub = importlib.import_module(f"s3prl.upstream.{names[name]}.hubconf")
        if cache_dir is not None:
            importlib.import_module("s3prl.util.download").set_dir(str(cache_dir))
        with tempfile.TemporaryDirectory() as folder:
            settings: dict[str, str] = {}
            if local is not None:
                settings["ckpt"] = local
            if model_config is not None:
                # s3prl takes settings from a file, and only while it builds the model.
                path = Path(folder) / "model_config.yaml"
                path.write_text(yaml.safe_dump(dict(model_config)), encoding="utf-8")
                settings["model_config"] = str(path)
            expert = getattr(hub, name)(**settings)
    except Exception as error:
        # Anything may go wrong in a stranger's model: a missing package, no network, its own bug.
        reason = (str(error).splitlines() or ["no message"])[0]
        raise UserError(
            f"s3prl's upstream {name!r} could not be loaded ({type(error).__name__}: {reason}).",
            where=f"module s3prl.upstream.{names[name]}",
            fix="Install what it needs, or choose another upstream.",
        ) from error
    return ZooUpstream(name, expert, local, model_config)


def _zoo_folder() -> Path | None:
    found = importlib.util.find_spec("s3prl")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "upstream"
    return folder if folder.is_dir() else None
