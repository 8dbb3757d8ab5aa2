"""HuBERT in plain PyTorch, with fairseq's parameter names and packed, batch-independent output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from s3prl_mtl.errors import UserError
from s3prl_mtl.upstreams.base import HiddenStates, Mask, Upstream, check_waveforms
from s3prl_mtl.upstreams.hubert.config import SPECIAL_SYMBOLS, HubertConfig
from s3prl_mtl.upstreams.hubert.convolutions import ConvolutionalFrontEnd, ScaleGradient
from s3prl_mtl.upstreams.hubert.dropout import dropout
from s3prl_mtl.upstreams.hubert.layers import layer_norm, linear
from s3prl_mtl.upstreams.hubert.masking import apply_masks
from s3prl_mtl.upstreams.hubert.segments import Segments
from s3prl_mtl.upstreams.hubert.transformer import TransformerEncoder
from s3prl_mtl.upstreams.strict_loading import load_strictly

RANDOM = {
    Tensor.normal_,
    Tensor.uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
}


class Hubert(Upstream):
    """HuBERT encoder (Hsu et al., 2021, https://arxiv.org/abs/2106.07447).

    ``hidden_states[0]`` is the input of the first Transformer layer, followed by the output of each
    layer. The output for an utterance equals fairseq's for a batch of one: convolutions are not
    padded, and padding elsewhere is masked.

    Args:
        config: the architecture.
        fairseq_header: the other entries of the original fairseq file, as plain values, for
            `write_fairseq_checkpoint`.

    Example::

        upstream = load_upstream("hubert_tiny")
        hidden = upstream([waveform_a, waveform_b])
        hidden.states.shape     # (layers + 1, frames of a + frames of b, width)
    """

    can_mask: ClassVar[bool] = True

    def __init__(
        self, config: HubertConfig, fairseq_header: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.fairseq_header = dict(fairseq_header) if fairseq_header is not None else None
        self.hidden_size = config.encoder_embed_dim
        self.num_hidden_states = config.encoder_layers + 1
        self.downsample_rate = config.total_stride

        self.mask_emb = nn.Parameter(torch.empty(config.encoder_embed_dim).uniform_())
        if config.label_embeddings[0]:
            self.label_embs_concat = nn.Parameter(torch.empty(config.label_embeddings).uniform_())
        self.feature_extractor = ConvolutionalFrontEnd(config)
        self.post_extract_proj: nn.Linear | None = None
        if config.conv_width != config.encoder_embed_dim:
            self.post_extract_proj = nn.Linear(config.conv_width, config.encoder_embed_dim)
        self.encoder = TransformerEncoder(config)
        self.layer_norm = nn.LayerNorm(config.conv_width)
        if config.target_glu:
            width = config.label_embeddings[1]
            self.target_glu = nn.Sequential(nn.Linear(width, 2 * width), nn.GLU())
        if config.final_proj_dim:
            self.final_proj = nn.Linear(config.encoder_embed_dim, config.final_proj_dim)

    @property
    def checkpoint_info(self) -> dict[str, Any]:
        """Plain values from which :func:`hubert_from_state` rebuilds the encoder."""
        return {
            "kind": "hubert",
            "config": self.config.to_dict(),
            "fairseq_header": self.fairseq_header,
        }

    @property
    def pretraining_settings(self) -> Mapping[str, Any]:
        """fairseq's settings of task, criterion and model in one mapping."""
        header = self.fairseq_header or {}
        if not header.get("cfg"):
            return header.get("args") or {}
        parts = (header["cfg"].get(name) or {} for name in ("task", "criterion", "model"))
        return {key: value for part in parts for key, value in part.items()}

    @property
    def pretraining_classes(self) -> list[list[str]] | None:
        """See :class:`Upstream`; from the dictionaries of fairseq's file."""
        state = (self.fairseq_header or {}).get("task_state") or {}
        found = [(entry or {}).get("symbols") or [] for entry in state.get("dictionaries") or []]
        # The embeddings have those of the special symbols, too.
        if sum(map(len, found)) != self.config.label_embeddings[0]:
            return None
        if any(symbols[: len(SPECIAL_SYMBOLS)] != SPECIAL_SYMBOLS for symbols in found):
            return None
        return [symbols[len(SPECIAL_SYMBOLS) :] for symbols in found] or None

    def num_frames(self, samples: int) -> int:
        """See :class:`Upstream`; 0 if the utterance is too short."""
        return self.config.num_frames(samples)

    def parameter_layers(self) -> dict[str, int]:
        """See :class:`Upstream`. Parameters after the layers have the number of the last one."""
        inputs = ["layer_norm.", "post_extract_proj.", "encoder.pos_conv."]
        if not self.config.layer_norm_first:
            inputs.append("encoder.layer_norm.")

        def layer(name: str) -> int:
            if name.startswith("feature_extractor."):
                return 0
            if name.startswith("encoder.layers."):
                return int(name.split(".")[2]) + 1
            return 1 if name.startswith(tuple(inputs)) else self.config.encoder_layers

        return {name: layer(name) for name, _ in self.named_parameters()}

    def checkpoint_activations(self) -> None:
        """See :class:`Upstream`."""
        self.feature_extractor.recompute = True
        self.encoder.recompute = True

    def forward(
        self, wavs: list[Tensor], masks: Sequence[Mask | None] | None = None
    ) -> HiddenStates:
        """Waveforms ``(samples_i,)`` -> ``(layers + 1, sum T_i, D)``; see :class:`Upstream`."""
        check_waveforms(wavs)
        self._refuse_short(wavs)
        # Longest first, so that utterances of similar length are adjacent.
        order = sorted(range(len(wavs)), key=lambda index: -len(wavs[index]))
        weight = self.mask_emb
        signals = [wavs[index].to(weight) for index in order]
        if self.config.normalize:
            signals = [F.layer_norm(signal, signal.shape) for signal in signals]
        lengths = [self.config.num_frames(len(signal)) for signal in signals]
        kind = weight.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else weight.dtype
        # Each operation chooses its precision itself.
        with torch.autocast(kind, enabled=False):
            convolved = self._convolve(signals, dtype)
            features = layer_norm(convolved, self.layer_norm)
            if self.post_extract_proj is not None:
                features = linear(features, self.post_extract_proj)
            features = dropout(features, self.config.dropout_input, self.training)
            unused = len(features) - sum(lengths)
            squares = None
            if masks is not None:
                squares = convolved.float().square().mean(1)
                in_order = [masks[index] for index in order]
                features = apply_masks(features, self.mask_emb, in_order, lengths)
            states = self.encoder(features, Segments(lengths, weight.device, unused))
        return HiddenStates(states, lengths, order, squares)

    def _convolve(self, signals: list[Tensor], dtype: torch.dtype) -> Tensor:
        factor = self.config.feature_grad_mult
        if factor == 0:
            with torch.no_grad():
                return self.feature_extractor(signals, dtype)
        features = self.feature_extractor(signals, dtype)
        return features if factor == 1 else ScaleGradient.apply(features, factor)

    def _refuse_short(self, wavs: list[Tensor]) -> None:
        least = self.config.receptive_field
        for index, wav in enumerate(wavs):
            if len(wav) < least:
                raise UserError(
                    f"Utterance {index} of the batch has {len(wav)} samples, too few for one "
                    "frame of HuBERT.",
                    where=f"waveform {index} of the {len(wavs)} given to the encoder",
                    fix=f"Leave out utterances under {least} samples ({least / 16:g} ms).",
                    code="audio-too-short",
                )


def hubert_from_state(info: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Hubert:
    """Rebuild an encoder from its ``checkpoint_info`` and its ``state_dict``, strictly.

    Raises:
        UserError: names or shapes that do not fit.
    """
    return build_hubert(
        HubertConfig.from_dict(info["config"]),
        state_dict,
        info["fairseq_header"],
        where="the encoder in the checkpoint",
    )


def build_hubert(
    config: HubertConfig,
    state_dict: Mapping[str, Tensor],
    fairseq_header: Mapping[str, Any] | None,
    *,
    where: str,
) -> Hubert:
    """An encoder with copies of these parameters.

    Raises:
        UserError: parameters missing, left over or of another shape; the message names some.
    """
    # Initialising 95 M parameters only to overwrite them takes a second.
    with _Uninitialised():
        model = Hubert(config, fairseq_header)
    load_strictly(
        model,
        state_dict,
        "the HuBERT that the settings describe",
        where,
        fix="Use a complete HuBERT checkpoint from pre-training.",
    )
    return model


class _Uninitialised(TorchFunctionMode):
    """Leaves parameters without random values.

    The meta device would do the same, but imports sympy and torch._dynamo, which takes two seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
