"""Settings of a HuBERT encoder, read from a fairseq checkpoint."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from s3prl_mtl.errors import UserError, nearest

ConvLayers = tuple[tuple[int, int, int], ...]

BASE_CONV_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
ACTIVATIONS = ("gelu", "gelu_accurate", "gelu_fast", "relu", "tanh", "linear", "swish")
MAX_CONV_LAYERS = 64
SPECIAL_SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>"]
"""First symbols of fairseq's dictionaries, before the classes."""


@dataclass(frozen=True)
class HubertConfig:
    """Settings of a HuBERT encoder; names and defaults are fairseq's (``HubertConfig`` there).

    ``conv_feature_layers`` holds (width, kernel, stride) of each convolution. ``normalize`` comes
    from the task: waveforms are normalised to mean 0, variance 1. ``final_proj_dim`` and
    ``label_embeddings`` (rows, width) are the sizes of parameters for pre-training, 0 if the
    checkpoint has none; the encoder keeps these parameters so that it can be written back.

    Raises:
        UserError: invalid values.
    """

    extractor_mode: str = "default"
    conv_feature_layers: ConvLayers = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    conv_pos_batch_norm: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    dropout_input: float = 0.0
    encoder_layerdrop: float = 0.0
    feature_grad_mult: float = 1.0
    normalize: bool = False
    target_glu: bool = False
    final_proj_dim: int = 0
    label_embeddings: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        _check_choice("extractor_mode", self.extractor_mode, ["default", "layer_norm"])
        _check_choice("activation_fn", self.activation_fn, list(ACTIVATIONS))
        for name in ("encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"):
            _check(name, getattr(self, name) > 0, getattr(self, name), "a positive whole number")
        _check("encoder_layers", self.encoder_layers > 0, self.encoder_layers, "at least 1")
        _check("conv_pos", self.conv_pos > 0, self.conv_pos, "at least 1")
        for name in ("conv_pos_groups", "encoder_attention_heads"):
            divisor = getattr(self, name)
            divides = divisor > 0 and self.encoder_embed_dim % divisor == 0
            wanted = f"a divisor of encoder_embed_dim={self.encoder_embed_dim}"
            _check(name, divides, divisor, wanted)
        for name in (
            "dropout",
            "attention_dropout",
            "activation_dropout",
            "dropout_input",
            "encoder_layerdrop",
        ):
            _check(name, 0.0 <= getattr(self, name) < 1.0, getattr(self, name), "in [0, 1)")
        _check(
            "feature_grad_mult", self.feature_grad_mult >= 0, self.feature_grad_mult, "0 or more"
        )

    @property
    def total_stride(self) -> int:
        """Samples from one frame to the next (320)."""
        return math.prod(stride for _, _, stride in self.conv_feature_layers)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame depends on, the minimum length of an utterance (400)."""
        samples = 1
        for _, kernel, stride in reversed(self.conv_feature_layers):
            samples = (samples - 1) * stride + kernel
        return samples

    @property
    def conv_width(self) -> int:
        """Width of the last convolution."""
        return self.conv_feature_layers[-1][0]

    def num_frames(self, samples: int) -> int:
        """Frames of an utterance; 0 if it is shorter than the receptive field."""
        length = samples
        for _, kernel, stride in self.conv_feature_layers:
            length = (length - kernel) // stride + 1 if length >= kernel else 0
        return length

    def to_dict(self) -> dict[str, Any]:
        """Plain values; :meth:`from_dict` reads them."""
        values = asdict(self)
        values["conv_feature_layers"] = [list(layer) for layer in self.conv_feature_layers]
        values["label_embeddings"] = list(self.label_embeddings)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HubertConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: an unknown key.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(
                    f"HuBERT has no setting {name!r}.",
                    where=f"{name} in the settings of the encoder in the checkpoint",
                    fix=nearest(name, known),
                    code="unknown-key",
                )
        layers = tuple(tuple(layer) for layer in values["conv_feature_layers"])
        rows, width = values["label_embeddings"]
        return replace(
            cls(),
            **{**values, "conv_feature_layers": layers, "label_embeddings": (rows, width)},
        )

    @classmethod
    def from_fairseq(
        cls,
        model: Mapping[str, Any],
        task: Mapping[str, Any],
        *,
        final_proj_dim: int,
        label_embeddings: tuple[int, int],
        where: str,
    ) -> HubertConfig:
        """Read ``cfg["model"]`` and ``cfg["task"]`` of a fairseq checkpoint.

        Args:
            model: settings of the architecture; missing ones have fairseq's defaults.
            task: settings of the pre-training task; only ``normalize`` is used.
            final_proj_dim: output width of ``final_proj``, 0 if there is none.
            label_embeddings: shape of ``label_embs_concat``, (0, 0) if there is none.
            where: the file, for errors.

        Raises:
            UserError: a value of the wrong type, or an architecture that is not HuBERT's.
        """
        _refuse_variants(model, where)
        values: dict[str, Any] = {}
        for field in fields(cls):
            source = task if field.name == "normalize" else model
            if field.name not in source:
                continue
            if field.name == "conv_feature_layers":
                text = source[field.name]
                values[field.name] = parse_conv_layers(text, where=where)
            else:
                default = field.default
                values[field.name] = _typed(field.name, source[field.name], type(default), where)
        values["final_proj_dim"] = final_proj_dim
        values["label_embeddings"] = label_embeddings
        return cls(**values)


def parse_conv_layers(text: object, *, where: str) -> ConvLayers:
    """Read fairseq's ``conv_feature_layers``, such as ``[(512,10,5)] + [(512,3,2)] * 4``.

    The text is parsed, never evaluated. It may contain whole numbers, lists, tuples, ``+`` and
    ``*``.

    Returns:
        (width, kernel, stride) of each convolution.

    Raises:
        UserError: anything else.
    """
    try:
        if not isinstance(text, str):
            raise ValueError(f"a text was expected, not {type(text).__name__}")
        layers = _literal(ast.parse(text.strip(), mode="eval").body)
        if not isinstance(layers, list | tuple) or not layers:
            raise ValueError("a list of layers was expected")
        result = []
        for layer in layers:
            if (
                not isinstance(layer, list | tuple)
                or len(layer) != 3
                or not all(isinstance(number, int) and number > 0 for number in layer)
            ):
                raise ValueError(f"{layer!r} is not (width, kernel, stride)")
            result.append((layer[0], layer[1], layer[2]))
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UserError(
            f"The convolutions of the encoder cannot be read from {str(text)[:200]!r}: {error}.",
            where=f"cfg.model.conv_feature_layers of {where}",
            fix=f"A list of (width, kernel, stride) such as {BASE_CONV_LAYERS!r} is expected.",
            code="invalid-settings",
        ) from None
    return tuple(result)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.List):
        return [_literal(element) for element in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_literal(element) for element in node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = _literal(node.left), _literal(node.right)
        if isinstance(node.op, ast.Add):
            if isinstance(left, list) and isinstance(right, list):
                return left + right
            if isinstance(left, tuple) and isinstance(right, tuple):
                return left + right
        else:
            if isinstance(left, int):
                left, right = right, left
            if isinstance(left, list | tuple) and isinstance(right, int):
                # Checked before it is built: a few characters could ask for terabytes.
                if len(left) * right > MAX_CONV_LAYERS:
                    raise ValueError(f"more than {MAX_CONV_LAYERS} layers")
                return left * right
    raise ValueError(f"{ast.unparse(node)[:60]!r} is not allowed there")


def _refuse_variants(model: Mapping[str, Any], where: str) -> None:
    """Refuse settings of fairseq's HuBERT class that select another architecture."""
    refused = {
        "layer_type": ("transformer", "only transformer layers are supported"),
        "pos_conv_depth": (1, "only one positional convolution is supported"),
    }
    for name, (wanted, reason) in refused.items():
        value = model.get(name, wanted)
        if value != wanted:
            raise UserError(
                f"This HuBERT has {name}={value!r}, but {reason}.",
                where=f"cfg.model.{name} of {where}",
                fix=f"Use a checkpoint with {name}={wanted!r}.",
                code="not-supported",
            )


def _typed(name: str, value: object, wanted: type, where: str) -> Any:
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is wanted:
        return value
    raise UserError(
        f"{name} is {value!r} instead of a value of type {wanted.__name__}.",
        where=f"{name} in cfg of {where}",
        fix="The checkpoint's settings were changed or damaged; use the original file.",
        code="wrong-type",
    )


def _check(name: str, valid: bool, value: object, wanted: str) -> None:
    if not valid:
        raise UserError(
            f"{name} is {value!r}.",
            where=f"{name} in the settings of the HuBERT encoder",
            fix=f"Use {wanted}.",
            code="invalid-settings",
        )


def _check_choice(name: str, value: str, known: list[str]) -> None:
    if value not in known:
        raise UserError(
            f"{name} is {value!r}.",
            where=f"{name} in the settings of the HuBERT encoder",
            fix=nearest(value, known),
            code="invalid-settings",
        )
