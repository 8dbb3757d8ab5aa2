"""`--format transformers`: a folder for `AutoModel.from_pretrained`.

    config.json               the architecture
    model.safetensors         the parameters under transformers' names
    preprocessor_config.json  whether waveforms are normalised

The parameters of pre-training (`final_proj`, `label_embs_concat`, `target_glu`) do not exist in
transformers' class and are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.upstreams import Hubert, HubertConfig
from s3prl_mtl.upstreams.zoo.huggingface import TransformersUpstream, import_transformers

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
    "swish": "silu",
}
_OF_A_LAYER = {
    "self_attn_layer_norm": "layer_norm",
    "final_layer_norm": "final_layer_norm",
    "fc1": "feed_forward.intermediate_dense",
    "fc2": "feed_forward.output_dense",
    **{f"self_attn.{name}_proj": f"attention.{name}_proj" for name in ("q", "k", "v", "out")},
}


def write(run: SavedRun, out: Path) -> None:
    """Write the encoder as a folder of transformers.

    Args:
        run: its encoder is HuBERT, or came from transformers.
        out: the folder, created here.

    Raises:
        UserError: transformers is not installed, or has no class for the encoder alone.
    """
    import_transformers("--format transformers")
    if run.kind == "transformers":
        _write_theirs(run, out)
        return
    from transformers import HubertConfig as TheirConfig
    from transformers import HubertModel, Wav2Vec2FeatureExtractor

    model = run.hubert()
    theirs = HubertModel(TheirConfig(**their_settings(model.config)))
    theirs.load_state_dict(their_parameters(model))
    theirs.eval().save_pretrained(out)
    Wav2Vec2FeatureExtractor(
        sampling_rate=16_000,
        do_normalize=model.config.normalize,
        # As in published models: GroupNorm includes the padding whatever a mask says.
        return_attention_mask=model.config.extractor_mode == "layer_norm",
    ).save_pretrained(out)


def _write_theirs(run: SavedRun, out: Path) -> None:
    """Write an encoder that came from transformers."""
    upstream = run.upstream()
    if not isinstance(upstream, TransformersUpstream):
        raise TypeError(f"{type(upstream).__name__} did not come from transformers")
    model: Any = upstream.model
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"{run.upstream_name} is the encoder of a model with a decoder, which is not in the "
            "run; transformers has no class for the encoder alone.",
            where=str(run.path),
            fix="Use the run with s3prl-mtl itself.",
            code="not-supported",
        )
    model.save_pretrained(out)
    settings = json.dumps(upstream.preprocessing, indent=2, sort_keys=True)
    (out / "preprocessor_config.json").write_text(settings + "\n", encoding="utf-8")


def their_settings(config: HubertConfig) -> dict[str, Any]:
    """The arguments of transformers' `HubertConfig`."""
    widths, kernels, strides = zip(*config.conv_feature_layers, strict=True)
    return {
        "feat_extract_norm": "layer" if config.extractor_mode == "layer_norm" else "group",
        "feat_extract_activation": "gelu",
        "conv_dim": list(widths),
        "conv_kernel": list(kernels),
        "conv_stride": list(strides),
        "conv_bias": config.conv_bias,
        "feat_proj_layer_norm": True,
        "feat_proj_dropout": config.dropout_input,
        "num_conv_pos_embeddings": config.conv_pos,
        "num_conv_pos_embedding_groups": config.conv_pos_groups,
        "do_stable_layer_norm": config.layer_norm_first,
        "num_hidden_layers": config.encoder_layers,
        "hidden_size": config.encoder_embed_dim,
        "intermediate_size": config.encoder_ffn_embed_dim,
        "num_attention_heads": config.encoder_attention_heads,
        "hidden_act": ACTIVATIONS[config.activation_fn],
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "layerdrop": config.encoder_layerdrop,
        "layer_norm_eps": 1e-5,
        # The mask embedding exists if this is positive; frames are masked only if both are set.
        "mask_time_prob": 0.05,
        "apply_spec_augment": False,
    }


def their_parameters(model: Hubert) -> dict[str, Tensor]:
    """The encoder's parameters under the names of transformers' `HubertModel`."""
    ours = {name: value.detach() for name, value in model.state_dict().items()}
    names = {
        "mask_emb": "masked_spec_embed",
        "layer_norm": "feature_projection.layer_norm",
        "post_extract_proj": "feature_projection.projection",
        "encoder.layer_norm": "encoder.layer_norm",
        "encoder.pos_conv.0.bias": "encoder.pos_conv_embed.conv.bias",
        "encoder.pos_conv.0.weight_g": (
            "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
        ),
        "encoder.pos_conv.0.weight_v": (
            "encoder.pos_conv_embed.conv.parametrizations.weight.original1"
        ),
    }
    norm = "2.1" if model.config.extractor_mode == "layer_norm" else "2"
    for index in range(len(model.config.conv_feature_layers)):
        layer = f"feature_extractor.conv_layers.{index}"
        names |= {f"{layer}.0": f"{layer}.conv", f"{layer}.{norm}": f"{layer}.layer_norm"}
    for index in range(model.config.encoder_layers):
        layer = f"encoder.layers.{index}"
        names |= {f"{layer}.{name}": f"{layer}.{their}" for name, their in _OF_A_LAYER.items()}

    found: dict[str, Tensor] = {}
    for name, value in ours.items():
        module, _, parameter = name.rpartition(".")
        if name in names:
            found[names[name]] = value
        elif module in names:
            found[f"{names[module]}.{parameter}"] = value
    if model.post_extract_proj is None:
        # fairseq has no projection between equal widths; transformers always has.
        width = model.config.encoder_embed_dim
        found["feature_projection.projection.weight"] = torch.eye(width)
        found["feature_projection.projection.bias"] = torch.zeros(width)
    return found
