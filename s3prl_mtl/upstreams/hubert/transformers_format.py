"""HuBERT in the format of Hugging Face's transformers: settings, names of parameters, folders.

A folder has `config.json`, the weights in `model.safetensors` or `pytorch_model.bin` (in parts with
an index, if they are large), and `preprocessor_config.json`. transformers itself is not needed.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError, require_packages
from s3prl_mtl.fileio.safe_torch import safe_load
from s3prl_mtl.upstreams.hubert.config import HubertConfig

logger = logging.getLogger(__name__)

SETTINGS = "config.json"
PREPROCESSING = "preprocessor_config.json"
SAFETENSORS = "model.safetensors"
WEIGHT_FILES = (SAFETENSORS, "pytorch_model.bin")
HUGGING_FACE = "hf:"

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
    "swish": "silu",
}
"""transformers' names of fairseq's activations."""
_FAIRSEQ_ACTIVATIONS = {
    **{theirs: ours for ours, theirs in reversed(ACTIVATIONS.items())},
    "gelu_new": "gelu_accurate",
    "gelu_fast": "gelu_accurate",
    "swish": "swish",
}

_OF_A_LAYER = {
    "self_attn_layer_norm": "layer_norm",
    "final_layer_norm": "final_layer_norm",
    "fc1": "feed_forward.intermediate_dense",
    "fc2": "feed_forward.output_dense",
    **{f"self_attn.{name}_proj": f"attention.{name}_proj" for name in ("q", "k", "v", "out")},
}
_POSITIONS = "encoder.pos_conv_embed"
# torch's weight norm of before and after 2.0.
_WEIGHT_NORM = {
    f"{_POSITIONS}.conv.parametrizations.weight.original0": f"{_POSITIONS}.conv.weight_g",
    f"{_POSITIONS}.conv.parametrizations.weight.original1": f"{_POSITIONS}.conv.weight_v",
}
_PROJECTION = "feature_projection.projection"
_MASK = "masked_spec_embed"
# Before the names of the encoder in models with a head, such as HubertForCTC.
_PREFIX = "hubert."

_PLAIN = {
    "conv_bias": "conv_bias",
    "dropout_input": "feat_proj_dropout",
    "conv_pos": "num_conv_pos_embeddings",
    "conv_pos_groups": "num_conv_pos_embedding_groups",
    "conv_pos_batch_norm": "conv_pos_batch_norm",
    "layer_norm_first": "do_stable_layer_norm",
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_attention_heads": "num_attention_heads",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "encoder_layerdrop": "layerdrop",
}
"""Settings with the same values: our name, their name."""

# Settings of the class of transformers that our encoder has in one way only.
_FIXED = {"feat_extract_activation": "gelu", "feat_proj_layer_norm": True, "layer_norm_eps": 1e-5}


def their_settings(config: HubertConfig) -> dict[str, Any]:
    """The arguments of transformers' `HubertConfig`."""
    widths, kernels, strides = zip(*config.conv_feature_layers, strict=True)
    return {
        **{theirs: getattr(config, ours) for ours, theirs in _PLAIN.items()},
        **_FIXED,
        "feat_extract_norm": "layer" if config.extractor_mode == "layer_norm" else "group",
        "conv_dim": list(widths),
        "conv_kernel": list(kernels),
        "conv_stride": list(strides),
        "hidden_act": ACTIVATIONS[config.activation_fn],
        # The mask embedding exists if this is positive; frames are masked only if both are set.
        "mask_time_prob": 0.05,
        "apply_spec_augment": False,
    }


def their_names(config: HubertConfig) -> dict[str, str]:
    """The parameters of the encoder: our name, and the name in transformers' `HubertModel`.

    Parameters of pre-training do not exist there.
    """
    modules = {
        "layer_norm": "feature_projection.layer_norm",
        "post_extract_proj": _PROJECTION,
        "encoder.layer_norm": "encoder.layer_norm",
    }
    if config.conv_width == config.encoder_embed_dim:
        del modules["post_extract_proj"]
    for index in range(config.encoder_layers):
        layer = f"encoder.layers.{index}"
        modules |= {f"{layer}.{ours}": f"{layer}.{theirs}" for ours, theirs in _OF_A_LAYER.items()}
    names = {"mask_emb": _MASK}
    by_layer = config.extractor_mode == "layer_norm"
    for index in range(len(config.conv_feature_layers)):
        layer = f"feature_extractor.conv_layers.{index}"
        names[f"{layer}.0.weight"] = f"{layer}.conv.weight"
        if config.conv_bias:
            names[f"{layer}.0.bias"] = f"{layer}.conv.bias"
        if by_layer or index == 0:
            modules[f"{layer}.2.1" if by_layer else f"{layer}.2"] = f"{layer}.layer_norm"
    if config.conv_pos_batch_norm:
        modules |= {
            "encoder.pos_conv.0": f"{_POSITIONS}.batch_norm",
            "encoder.pos_conv.1": f"{_POSITIONS}.conv",
        }
        for buffer in ("running_mean", "running_var", "num_batches_tracked"):
            names[f"encoder.pos_conv.0.{buffer}"] = f"{_POSITIONS}.batch_norm.{buffer}"
    else:
        names["encoder.pos_conv.0.bias"] = f"{_POSITIONS}.conv.bias"
        parts = ("encoder.pos_conv.0.weight_g", "encoder.pos_conv.0.weight_v")
        names |= dict(zip(parts, _WEIGHT_NORM, strict=True))
    for ours, theirs in modules.items():
        names |= {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
    return names


def their_parameters(config: HubertConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's parameters under the names of transformers' `HubertModel`."""
    found = {theirs: state[ours].detach() for ours, theirs in their_names(config).items()}
    if f"{_PROJECTION}.weight" not in found:
        # fairseq has no projection between equal widths; transformers always has.
        found[f"{_PROJECTION}.weight"] = torch.eye(config.encoder_embed_dim)
        found[f"{_PROJECTION}.bias"] = torch.zeros(config.encoder_embed_dim)
    return found


def folder_of(path: Path) -> Path | None:
    """The folder of a transformers model, given it or its weights file; otherwise None."""
    if path.is_dir():
        return path if (path / SETTINGS).is_file() else None
    in_folder = path.name in WEIGHT_FILES and (path.parent / SETTINGS).is_file()
    return path.parent if in_folder else None


def read_transformers_folder(folder: Path) -> tuple[HubertConfig, dict[str, Tensor]]:
    """Read a HuBERT that transformers saved.

    Parts that the encoder does not have, such as the head of `HubertForCTC`, are left out, which is
    logged.

    Returns:
        the architecture; the parameters under our names, float32.

    Raises:
        UserError: a file is missing or damaged, or the model is not a HuBERT that the encoder can
            represent: the error names the flag that loads it with transformers.
    """
    settings = _read_json(folder / SETTINGS)
    if settings.get("model_type") != "hubert":
        raise _not_ours(folder, f"model_type={settings.get('model_type')!r}", "model_type")
    config = _config(settings, _read_normalize(folder), folder)
    weights = _read_weights(folder)
    if any(name.startswith(_PREFIX) for name in weights):
        inner = {n.removeprefix(_PREFIX): v for n, v in weights.items() if n.startswith(_PREFIX)}
        outside = [name for name in weights if not name.startswith(_PREFIX)]
    else:
        inner, outside = dict(weights), []
    for new, old in _WEIGHT_NORM.items():
        if old in inner:
            inner[new] = inner.pop(old)
    state = {}
    for ours, theirs in their_names(config).items():
        if theirs in inner:
            state[ours] = inner.pop(theirs)
    _check_identity(config, inner, folder)
    if "mask_emb" not in state:
        # transformers has it only if the model masks frames in training.
        generator = torch.Generator().manual_seed(0)
        state["mask_emb"] = torch.rand(config.encoder_embed_dim, generator=generator)
        outside.append(f"no {_MASK} (initialised at random)")
    # Keep unmatched parameters: the encoder refuses them.
    state |= inner
    if outside:
        logger.info("Differences of %s from the encoder: %s.", folder, ", ".join(outside))
    return config, {
        name: value.float() if value.is_floating_point() else value for name, value in state.items()
    }


def _config(settings: Mapping[str, Any], normalize: bool, folder: Path) -> HubertConfig:
    """The architecture.

    Raises:
        UserError: a setting is missing or has a value that the encoder cannot represent.
    """
    for name, only in _FIXED.items():
        if settings.get(name, only) != only:
            raise _not_ours(folder, f"{name}={settings[name]!r}", name)
    activation = _FAIRSEQ_ACTIVATIONS.get(settings.get("hidden_act", "gelu"))
    if activation is None:
        raise _not_ours(folder, f"hidden_act={settings['hidden_act']!r}", "hidden_act")
    # Absent settings have transformers' defaults, which are those of HuBERT Base, as ours.
    defaults = {**their_settings(HubertConfig()), "layerdrop": 0.1}
    given = {name: settings.get(name, default) for name, default in defaults.items()}
    norm = given["feat_extract_norm"]
    if norm not in ("group", "layer"):
        raise _not_ours(folder, f"feat_extract_norm={norm!r}", "feat_extract_norm")
    try:
        layers = [
            (int(width), int(kernel), int(stride))
            for width, kernel, stride in zip(
                given["conv_dim"], given["conv_kernel"], given["conv_stride"], strict=True
            )
        ]
        plain = {}
        for ours, theirs in _PLAIN.items():
            kind = type(getattr(HubertConfig(), ours))
            plain[ours] = kind(given[theirs])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The settings of the model cannot be read: {error}.",
            where=str(folder / SETTINGS),
            fix="Save the model again with `save_pretrained`.",
            code="invalid-settings",
        ) from error
    return HubertConfig(
        extractor_mode="layer_norm" if norm == "layer" else "default",
        conv_feature_layers=tuple(layers),
        activation_fn=activation,
        normalize=normalize,
        **plain,
    )


def _check_identity(config: HubertConfig, rest: dict[str, Tensor], folder: Path) -> None:
    """Remove the projection of a model without one in fairseq's format.

    Raises:
        UserError: it changes the features.
    """
    if config.conv_width != config.encoder_embed_dim or f"{_PROJECTION}.weight" not in rest:
        return
    weight, bias = rest.pop(f"{_PROJECTION}.weight"), rest.pop(f"{_PROJECTION}.bias")
    if not torch.equal(weight.float(), torch.eye(config.encoder_embed_dim)) or bias.any():
        raise _not_ours(folder, "a projection between equal widths", "conv_dim, hidden_size")


def _read_normalize(folder: Path) -> bool:
    path = folder / PREPROCESSING
    if not path.is_file():
        raise UserError(
            "The folder does not define whether waveforms are normalised.",
            where=str(path),
            fix='Write this file: {"do_normalize": true, "sampling_rate": 16000}, or false.',
            code="file-missing",
        )
    settings = _read_json(path)
    rate = settings.get("sampling_rate", 16_000)
    if rate != 16_000:
        raise UserError(
            f"The model encodes waveforms at {rate} Hz; corpora are read at 16000 Hz.",
            where=str(path),
            fix="Choose a model for 16000 Hz.",
            code="audio-rate",
        )
    # The default of transformers.
    return bool(settings.get("do_normalize", True))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it is a {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"The file is not an object of JSON: {error}.",
            where=str(path),
            fix="Save the model again with `save_pretrained`.",
            code="file-malformed",
        ) from error
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder; safetensors is preferred, as in transformers."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return _read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = _read_json(index).get("weight_map", {}).values()
            weights: dict[str, Tensor] = {}
            for part in sorted(set(parts)):
                # A name of a file, never a path.
                weights |= _read_file(folder / Path(part).name)
            return weights
    raise UserError(
        f"The folder has neither {' nor '.join(WEIGHT_FILES)}.",
        where=str(folder),
        fix="Save the model again with `save_pretrained`.",
        code="checkpoint-incomplete",
    )


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        loaded = safe_load(path, kind="file of weights")
        weights = loaded if isinstance(loaded, Mapping) else {}
        if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
            raise _damaged(path, "it has other things than weights")
        return dict(weights)
    require_packages(["safetensors"], f"-k {path}", "transformers")
    library: Any = importlib.import_module("safetensors.torch")
    try:
        found: dict[str, Tensor] = library.load_file(path)
    except Exception as error:  # of safetensors' own kinds
        raise _damaged(path, str(error)) from error
    return found


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"The weights cannot be read: {reason}.",
        where=str(path),
        fix="Download the file again.",
        code="checkpoint-format",
    )


def _not_ours(folder: Path, what: str, key: str) -> UserError:
    return UserError(
        f"The built-in HuBERT cannot represent this model: {what}.",
        where=f"{key} in {folder / SETTINGS}",
        fix=f"Load it with transformers: leave out -k, and give -u {HUGGING_FACE}{folder}.",
        code="checkpoint-format",
    )
