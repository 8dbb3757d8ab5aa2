"""`--format onnx`: the encoder and the weighted sum of its layers, for onnxruntime.

    waveform (1, samples)  ->  hidden_states (layers + 1, 1, frames, width)
                               features      (1, frames, width)

The graph takes one utterance of any length: with padding, HuBERT's GroupNorm and attention would
change its features. Waveforms are normalised in the graph if the encoder needs that.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_mtl.export.formats import Options
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.upstreams import Featurizer, Hubert
from s3prl_mtl.upstreams.hubert.convolutions import TimeNorm
from s3prl_mtl.upstreams.hubert.segments import Segments

OPSET = 18
LAYER_NORM_EPSILON = 1e-5
# protobuf limits a file to 2 GiB; parameters of larger models go to a second file.
MAX_BYTES_IN_ONE_FILE = 3 * 2**29
TRACED_SAMPLES = 16_000


class OneUtterance(nn.Module):
    """HuBERT for one utterance: packing of several cannot be traced.

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
        one = Segments([frames.shape[0]], frames.device)
        states = torch.stack(encoder.encoder(frames, one))
        shares: Any = self.shares
        features = torch.tensordot(shares, states[-len(shares) :], dims=1)
        return states[:, None], features[None]


def _standardised(x: Tensor, epsilon: float) -> Tensor:
    """Mean 0 and variance 1 over the last axis, in two passes."""
    centred = x - x.mean(dim=-1, keepdim=True)
    # For a constant waveform the rounding error of the mean would be scaled up to a signal.
    centred = centred - centred.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(variance + epsilon)


def _over_time(x: Tensor, norm: TimeNorm) -> Tensor:
    """GroupNorm with one group per channel, (1, C, T).

    torch would export InstanceNormalization; onnxruntime rounds its mean so that on silence and
    constant waveforms the remainder becomes a signal: errors up to 1.7 were measured.
    """
    return _standardised(x, norm.eps) * norm.weight[:, None] + norm.bias[:, None]


def write(run: SavedRun, out: Path, options: Options) -> None:
    """Write encoder and featurizer as an ONNX graph.

    Args:
        run: its encoder is HuBERT.
        out: the file. Parameters of more than 1.5 GiB go to a second file, `<name>.data`.
        options: not used.
    """
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
        raise RuntimeError("torch.onnx.export returned no program")
    _describe(program.model, run, encoder)
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    program.save(out, external_data=size > MAX_BYTES_IN_ONE_FILE)


def _describe(model: Any, run: SavedRun, encoder: Hubert) -> None:
    """Set metadata and output shapes; remove the source paths that torch writes for each node."""
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
    """Silence the warnings of torch's exporter."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in noisy]
    for log in noisy:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(noisy, levels, strict=True):
            log.setLevel(level)
