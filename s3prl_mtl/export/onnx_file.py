"""`--format onnx`: the encoder and the weighted sum of its layers, for onnxruntime and others.

    waveform (1, samples)  ->  hidden_states (layers + 1, 1, frames, width)
                               features      (1, frames, width)

One utterance of any length at a time: with padding, HuBERT's GroupNorm and attention would give
it other features than alone. Waveforms are normalised inside where the encoder wants that.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_mtl.errors import UserError
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.upstreams import Featurizer, Hubert
from s3prl_mtl.upstreams.hubert.convolutions import TimeNorm
from s3prl_mtl.upstreams.hubert.packing import LengthGroup

OPSET = 18
LAYER_NORM_EPSILON = 1e-5
# A file of protobuf ends at 2 GiB; what is larger has its parameters in a second file.
MAX_BYTES_IN_ONE_FILE = 3 * 2**29
TRACED_SAMPLES = 16_000


class OneUtterance(nn.Module):
    """HuBERT's own modules without the packing of several utterances, which cannot be traced.

    Args:
        encoder: the encoder; its modules are shared.
        featurizer: the weighted sum of its hidden states.
    """

    def __init__(self, encoder: Hubert, featurizer: Featurizer) -> None:
        super().__init__()
        self.encoder = encoder
        weights = featurizer.weights
        # Without weights the features are the last hidden state.
        shares = torch.ones(1) if weights is None else torch.softmax(weights.detach(), dim=0)
        self.register_buffer("shares", shares)

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """``(1, samples)`` -> ``(layers + 1, 1, frames, width)`` and ``(1, frames, width)``."""
        encoder = self.encoder
        x = _standardised(waveform, LAYER_NORM_EPSILON) if encoder.config.normalize else waveform
        x = x[:, None]
        for block in encoder.feature_extractor.conv_layers:
            for module in block.children():
                x = _over_time(x, module) if isinstance(module, TimeNorm) else module(x)
        frames = encoder.layer_norm(x[0].t())
        if encoder.post_extract_proj is not None:
            frames = encoder.post_extract_proj(frames)
        alone = [LengthGroup(lengths=[frames.shape[0]], slots=None, mask=None)]
        states = torch.stack(encoder.encoder(frames, alone))
        shares: Any = self.shares
        features = torch.tensordot(shares, states[-len(shares) :], dims=1)
        return states[:, None], features[None]


def _standardised(x: Tensor, epsilon: float) -> Tensor:
    """Mean 0 and variance 1 over the last axis, in two passes."""
    centred = x - x.mean(dim=-1, keepdim=True)
    # Where all values are the same, what rounding left would be taken for a signal.
    centred = centred - centred.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(variance + epsilon)


def _over_time(x: Tensor, norm: TimeNorm) -> Tensor:
    """GroupNorm of one group a channel, (1, C, T).

    onnxruntime's InstanceNormalization, which torch would write, rounds its mean so far that on
    silence and on constant waveforms the remainder becomes a signal: measured up to 1.7 off.
    """
    return _standardised(x, norm.eps) * norm.weight[:, None] + norm.bias[:, None]


def write(run: SavedRun, out: Path) -> None:
    """Write encoder and featurizer as an ONNX graph.

    Args:
        run: its encoder is HuBERT.
        out: the file. Beyond 1.5 GiB the parameters go to a second one, `<name>.data`.

    Raises:
        UserError: onnx or onnxscript is not installed.
    """
    require_onnx()
    encoder = run.hubert()
    module = OneUtterance(encoder, run.featurizer(encoder)).eval()
    least = encoder.config.receptive_field
    samples = torch.export.Dim("samples", min=least)
    example = torch.zeros(1, max(TRACED_SAMPLES, 2 * least))
    with _quietly():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["waveform"],
            output_names=["hidden_states", "features"],
            dynamic_shapes={"waveform": {1: samples}},
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    _describe(program.model, run, encoder)
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    program.save(out, external_data=size > MAX_BYTES_IN_ONE_FILE)


def require_onnx() -> None:
    """Check that the exporter of torch has what it needs.

    Raises:
        UserError: a package is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.",
            where="--format onnx",
            fix="Install what is needed with `pip install 's3prl-mtl[onnx]'`.",
        )


def _describe(model: Any, run: SavedRun, encoder: Hubert) -> None:
    """Say in the file what it is, in place of where on this machine each node comes from."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    frames = "frames"
    states, features = model.graph.outputs
    states.shape = type(states.shape)([encoder.num_hidden_states, 1, frames, encoder.hidden_size])
    features.shape = type(features.shape)([1, frames, encoder.hidden_size])
    model.graph.name = "hubert"
    model.metadata_props.clear()
    model.metadata_props.update(
        {
            "upstream": run.upstream_name,
            "step": str(run.step),
            "feature_selection": run.feature_selection,
            "sample_rate": "16000",
            "least_samples": str(encoder.config.receptive_field),
            "samples_per_frame": str(encoder.downsample_rate),
        }
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep torch's exporter from telling users what operators it does not know."""
    chatty = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in chatty]
    for log in chatty:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(chatty, levels, strict=True):
            log.setLevel(level)
