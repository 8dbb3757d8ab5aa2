"""Encoders of Hugging Face's transformers: `-u hf:PATH_OR_NAME`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_mtl.errors import UserError
from s3prl_mtl.s3prl_compat.torchaudio_fallback import import_transformers
from s3prl_mtl.upstreams.base import HiddenStates, Upstream, check_waveforms
from s3prl_mtl.upstreams.unpadded import encode_by_length, probe
from s3prl_mtl.upstreams.zoo.renaming import rename_state

logger = logging.getLogger(__name__)

HUGGING_FACE = "hf:"
SAMPLE_RATE = 16_000
UNUSED = ("masked_spec_embed",)
"""Parameters for masking in pre-training: some checkpoints lack them, and nothing here uses them.
"""


class TransformersUpstream(Upstream):
    """An encoder of transformers behind our interface.

    Only waveforms of the same length go through the model together, so that there is no padding:
    features are those of each utterance alone. Masking inside the model and LayerDrop are off, as
    in s3prl's multi-task branch.

    ``hidden_states[0]`` is the input of the first layer, then comes each layer's output. The last
    is the model's ``last_hidden_state``: for pre-norm encoders after the final normalisation,
    which transformers itself leaves out of its ``hidden_states``.

    In checkpoints the parameters have the names that transformers gives them.

    Args:
        name: the path or the name that it was loaded by.
        model: the encoder.
        settings: its config, as plain values.
        preprocessing: the settings of its feature extractor, as plain values.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        settings: Mapping[str, Any],
        preprocessing: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.name = name
        self.settings = dict(settings)
        self.preprocessing = dict(preprocessing)
        self.model = model.eval()
        kind = str(preprocessing.get("feature_extractor_type"))
        self._takes_waveforms = kind == "Wav2Vec2FeatureExtractor"
        if not self._takes_waveforms:
            self._extractor = _extractor_from(preprocessing, name)
        self._whole_seconds = kind == "WhisperFeatureExtractor"
        where = f"-u {HUGGING_FACE}{name}"
        rename_state(self, ["model."])
        width, states, rate = probe(self._encode, name, where)
        self.hidden_size, self.num_hidden_states, self.downsample_rate = width, states, rate

    @property
    def checkpoint_info(self) -> dict[str, Any]:
        """Plain values from which :func:`rebuild_transformers` makes the encoder again."""
        return {
            "kind": "transformers",
            "name": self.name,
            "config": self.settings,
            "preprocessing": self.preprocessing,
        }

    def forward(self, wavs: list[Tensor]) -> HiddenStates:
        """Waveforms ``(samples_i,)`` -> packed hidden states; see :class:`Upstream`.

        Raises:
            UserError: an utterance is too short, or longer than the model's window (Whisper).
        """
        check_waveforms(wavs)
        return encode_by_length(wavs, self._encode, self.name)

    def _encode(self, wavs: list[Tensor]) -> list[Tensor]:
        inputs, frames = self._inputs(wavs)
        output = self.model(**inputs, output_hidden_states=True, return_dict=True)
        states = list(output.hidden_states)
        if output.last_hidden_state.shape == states[-1].shape:
            states[-1] = output.last_hidden_state
        return states if frames is None else [state[:, :frames] for state in states]

    def _inputs(self, wavs: list[Tensor]) -> tuple[dict[str, Tensor], int | None]:
        """The model's arguments for waveforms of one length, and how many frames to keep."""
        parameter = next(self.model.parameters())
        if self._takes_waveforms:
            waves = torch.stack(wavs).to(parameter)
            if self.preprocessing.get("do_normalize", True):
                mean = waves.mean(dim=1, keepdim=True)
                variance = waves.var(dim=1, keepdim=True, correction=0)
                waves = (waves - mean) / torch.sqrt(variance + 1e-7)
            return {"input_values": waves}, None
        frames = None
        if self._whole_seconds:
            # Whisper hears 30 s always, the rest of them silent.
            window = int(self.preprocessing["chunk_length"]) * SAMPLE_RATE
            frames = self._frames_of_window(len(wavs[0]), window)
        extracted = self._extractor(
            [wav.detach().cpu().numpy() for wav in wavs],
            sampling_rate=SAMPLE_RATE,
            return_tensors="pt",
        )
        inputs = {
            key: value.to(parameter) if value.is_floating_point() else value.to(parameter.device)
            for key, value in extracted.items()
        }
        return inputs, frames

    def _frames_of_window(self, samples: int, window: int) -> int:
        if samples > window:
            raise UserError(
                f"An utterance has {samples / SAMPLE_RATE:.1f} s, and {self.name} hears "
                f"{window // SAMPLE_RATE} s at most.",
                where=f"-u {HUGGING_FACE}{self.name}",
                fix="Leave out longer utterances, or choose an encoder without such a window.",
            )
        stride = window // int(self.settings["max_source_positions"])
        return -(-samples // stride)


def load_transformers(
    name: str,
    ckpt: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
) -> TransformersUpstream:
    """Load an encoder of transformers.

    Args:
        name: a folder that `save_pretrained` wrote, or a name of huggingface.co.
        ckpt: must be None: the name says where the weights are.
        cache_dir: where downloads are kept; None for transformers' own choice.

    Raises:
        UserError: transformers is not installed, there is no such model, it lacks weights or a
            preprocessor config, or its hidden states are no sequence of frames.
    """
    where = f"-u {HUGGING_FACE}{name}"
    if ckpt is not None:
        raise UserError(
            "An encoder of Hugging Face takes no checkpoint beside it.",
            where="-k",
            fix=f"Leave out -k, or name the folder: -u {HUGGING_FACE}FOLDER.",
        )
    if not name:
        raise UserError("No model is named.", where=where, fix="-u hf:facebook/wav2vec2-base")
    transformers = import_transformers(where)
    expanded = os.path.expanduser(name)
    source = os.path.abspath(expanded) if os.path.isdir(expanded) else name
    arguments = {"cache_dir": str(cache_dir)} if cache_dir is not None else {}
    preprocessing = _read_preprocessing(transformers, source, arguments, where)
    try:
        config = transformers.AutoConfig.from_pretrained(source, **arguments)
        switch_off(config)
        model, report = transformers.AutoModel.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **arguments,
        )
    except Exception as error:
        # Anything may go wrong in a stranger's files: no network, a name that is none, bad weights.
        raise _cannot_load(name, error, where) from error
    missing = [key for key in report["missing_keys"] if not key.endswith(UNUSED)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"The checkpoint of {name} lacks weights of its encoder: "
            f"{', '.join(sorted(missing)[:3])}{more}.",
            where=where,
            fix="Take a complete checkpoint.",
        )
    return TransformersUpstream(source, _encoder_of(model), config.to_dict(), preprocessing)


def rebuild_transformers(info: Mapping[str, Any]) -> TransformersUpstream:
    """An encoder from its ``checkpoint_info``; its parameters are yet to be loaded.

    Raises:
        UserError: transformers is not installed, or does not know this kind of model.
    """
    where = "the encoder in the checkpoint"
    transformers = import_transformers(where)
    settings = dict(info["config"])
    try:
        config = transformers.AutoConfig.for_model(**settings)
        switch_off(config)
        with torch.random.fork_rng():
            model = transformers.AutoModel.from_config(config)
    except Exception as error:
        raise _cannot_load(str(info["name"]), error, where) from error
    return TransformersUpstream(
        info["name"], _encoder_of(model.float()), settings, info["preprocessing"]
    )


def _read_preprocessing(
    transformers: Any, source: str, arguments: Mapping[str, str], where: str
) -> dict[str, Any]:
    """What is done to a waveform before the model; never guessed."""
    try:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(source, **arguments)
    except Exception as error:
        raise UserError(
            f"What {source} expects of a waveform cannot be read "
            f"({type(error).__name__}: {_first_line(error)}).",
            where=where,
            fix="Check the name. A folder needs a preprocessor_config.json, such as "
            '{"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": true, '
            '"sampling_rate": 16000}.',
        ) from error
    settings: dict[str, Any] = json.loads(extractor.to_json_string())
    rate = settings.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise UserError(
            f"{source} takes waveforms at {rate} Hz, and every corpus here is read at "
            f"{SAMPLE_RATE} Hz.",
            where=where,
            fix=f"Choose an encoder of {SAMPLE_RATE} Hz.",
        )
    return settings


def _extractor_from(preprocessing: Mapping[str, Any], name: str) -> Any:
    transformers = import_transformers(f"-u {HUGGING_FACE}{name}")
    kind = str(preprocessing.get("feature_extractor_type"))
    known = getattr(transformers, kind, None)
    if known is None:
        raise UserError(
            f"transformers {transformers.__version__} has no {kind}, which {name} needs.",
            where=f"-u {HUGGING_FACE}{name}",
            fix="Install the version of transformers that the model was made with.",
        )
    settings = {key: value for key, value in preprocessing.items() if not key.endswith("_type")}
    return known(**settings)


def switch_off(config: Any) -> None:
    """No LayerDrop and no masking inside the model: the hidden states of a step are all there."""
    for key in ("layerdrop", "encoder_layerdrop"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    if hasattr(config, "mask_time_prob") or hasattr(config, "apply_spec_augment"):
        # data2vec's config lacks it, and its model takes that for a yes.
        config.apply_spec_augment = False


def _encoder_of(model: Any) -> nn.Module:
    """The encoder alone, where the model has a decoder too (Whisper)."""
    if getattr(model.config, "is_encoder_decoder", False):
        encoder: nn.Module = model.get_encoder()
        return encoder
    whole: nn.Module = model
    return whole


def _cannot_load(name: str, error: Exception, where: str) -> UserError:
    local = Path(os.path.expanduser(name)).is_dir()
    return UserError(
        f"{name} could not be loaded with transformers ({type(error).__name__}: "
        f"{_first_line(error)}).",
        where=where,
        fix="Save it with `save_pretrained` once more."
        if local
        else "Check the name, and that there is a network; or give the path of a folder.",
    )


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "no message")[:300]
