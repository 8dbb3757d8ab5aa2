"""Recurrent head of SUPERB's ASR and slot filling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.nn.lstm import lstm_over_padded
from s3prl_mtl.nn.transfer import to_device

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN": nn.RNN,
}
SAMPLE_STYLES = ("drop", "concat")


def _subsample(features: Tensor, lengths: Tensor, rate: int, style: str) -> tuple[Tensor, Tensor]:
    """Keep every rate-th frame (`drop`), or concatenate groups of rate frames (`concat`)."""
    lengths = torch.div(lengths, rate, rounding_mode="floor")
    if style == "drop":
        return features[:, ::rate], lengths
    batch, frames, width = features.shape
    whole = features[:, : frames - frames % rate]
    return whole.reshape(batch, frames // rate, width * rate), lengths


def over_selected_rows(layer: nn.RNNBase, features: Tensor, lengths: Tensor) -> Tensor:
    """A recurrent layer over each utterance; its backward direction must not start in padding.

    The same as torch's functions that pack and unpack, which copy frame by frame in the backward
    pass.

    Args:
        layer: of one layer.
        features: (B, T, input_dim), padded.
        lengths: frames of each utterance (B,), on the CPU.

    Returns:
        (B, T, output_dim), zeros in padding.
    """
    batch, frames, _ = features.shape
    ordered, utterance = torch.sort(lengths, descending=True)
    is_frame = torch.arange(frames)[:, None] < ordered
    time, rank = is_frame.nonzero(as_tuple=True)
    rows = to_device(utterance[rank] * frames + time, features.device)
    packed = features.flatten(0, 1).index_select(0, rows)
    output = layer(PackedSequence(packed, is_frame.sum(dim=1)))[0].data
    padded = output.new_zeros(batch * frames, output.shape[1]).index_copy(0, rows, output)
    return padded.unflatten(0, (batch, frames))


class RNNLayer(nn.Module):
    """A recurrent layer (`layer`), then norm (`ln`), dropout, subsampling, projection (`pj`)."""

    def __init__(
        self,
        input_dim: int,
        *,
        module: str,
        bidirection: bool,
        dim: int,
        dropout: float,
        layer_norm: bool,
        sample_rate: int,
        proj: bool,
    ) -> None:
        super().__init__()
        self.output_dim = 2 * dim if bidirection else dim
        self.sample_rate = sample_rate
        self.layer = CELLS[module](input_dim, dim, bidirectional=bidirection, batch_first=True)
        self.ln = nn.LayerNorm(self.output_dim) if layer_norm else None
        self.dropout = nn.Dropout(dropout)
        self.pj = nn.Linear(self.output_dim, self.output_dim) if proj else None

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        on_cpu = features.device.type == "cpu"
        # In training only, so that evaluation stays bit-identical to packed sequences.
        if isinstance(self.layer, nn.LSTM) and on_cpu and self.training:
            hidden = lstm_over_padded(self.layer, features, lengths)
        else:
            hidden = over_selected_rows(self.layer, features, lengths)
        if self.ln is not None:
            hidden = self.ln(hidden)
        hidden = self.dropout(hidden)
        if self.sample_rate > 1:
            hidden, lengths = _subsample(hidden, lengths, self.sample_rate, "drop")
        if self.pj is not None:
            hidden = torch.tanh(self.pj(hidden))
        return hidden, lengths


class RNNs(nn.Module):
    """Recurrent layers, then a linear layer on each frame.

    The logits of an utterance do not depend on the rest of the batch. Parameters are named as in
    s3prl: `rnns.N.layer`, `rnns.N.ln`, `rnns.N.pj`, `linear`.

    Args:
        input_dim: width of the features.
        output_dim: number of outputs per frame.
        module: LSTM, GRU or RNN, in upper or lower case.
        bidirection: bidirectional layers; their output is 2 * `dim` wide.
        dim: width of each layer; its length is the number of layers.
        dropout: dropout after each layer.
        layer_norm: whether layer norm follows each layer.
        proj: whether a linear layer with tanh ends each layer.
        sample_rate: subsampling factor of each layer's output.
        sample_style: subsampling of the input to `total_rate`: `drop` or `concat` frames.
        total_rate: samples per frame of the first layer's input; -1 for `upstream_rate`.
        upstream_rate: samples per frame of the features; 320 are 20 ms.

    Raises:
        UserError: unknown cell or style, or lists of different lengths.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        module: str,
        bidirection: bool,
        dim: Sequence[int],
        dropout: Sequence[float],
        layer_norm: Sequence[bool],
        proj: Sequence[bool],
        sample_rate: Sequence[int],
        sample_style: str,
        total_rate: int = 320,
        upstream_rate: int = 320,
    ) -> None:
        super().__init__()
        for key, name, known in (
            ("module", str(module).upper(), list(CELLS)),
            ("sample_style", sample_style, list(SAMPLE_STYLES)),
        ):
            if name not in known:
                raise UserError(
                    f"Unknown {key} {name!r} of a recurrent head.",
                    where=f"RNNs.{key}",
                    fix=nearest(str(name), known),
                    code="unknown-name",
                )
        per_layer = {
            "dim": dim,
            "dropout": dropout,
            "layer_norm": layer_norm,
            "proj": proj,
            "sample_rate": sample_rate,
        }
        counts = {key: len(values) for key, values in per_layer.items()}
        if len(set(counts.values())) > 1 or not dim:
            listed = ", ".join(f"{key}: {count}" for key, count in counts.items())
            raise UserError(
                "The per-layer lists of a recurrent head differ in length or are empty.",
                where=f"RNNs ({listed})",
                fix="Give all five lists the same length, at least 1.",
                code="invalid-value",
            )
        self.sample_rate = 1 if total_rate == -1 else round(total_rate / upstream_rate)
        self.sample_style = sample_style
        if self.sample_rate > 1 and sample_style == "concat":
            input_dim *= self.sample_rate
        self.rnns = nn.ModuleList()
        for index, width in enumerate(dim):
            layer = RNNLayer(
                input_dim,
                module=module.upper(),
                bidirection=bidirection,
                dim=width,
                dropout=dropout[index],
                layer_norm=layer_norm[index],
                sample_rate=sample_rate[index],
                proj=proj[index],
            )
            self.rnns.append(layer)
            input_dim = layer.output_dim
        self.linear = nn.Linear(input_dim, output_dim)

    @property
    def subsampling(self) -> int:
        """Frames of the features for each frame of logits."""
        rates = [getattr(layer, "sample_rate", 1) for layer in self.rnns]
        return self.sample_rate * math.prod(rates)

    def logit_count(self, frames: int) -> int:
        """Logits of an utterance of so many frames."""
        frames //= self.sample_rate
        for layer in self.rnns:
            assert isinstance(layer, RNNLayer)
            frames //= layer.sample_rate
        return frames

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T', output_dim) of features (B, T, input_dim), and their lengths (B,).

        Without subsampling T' = T; subsampling by n keeps `length // n` frames of an utterance.
        Logits of padded frames are computed too and are meaningless.

        Raises:
            ValueError: subsampling leaves no frame of an utterance.
        """
        lengths = lengths.cpu()
        if self.sample_rate > 1:
            features, lengths = _subsample(features, lengths, self.sample_rate, self.sample_style)
        for layer in self.rnns:
            if int(lengths.min()) < 1:
                raise ValueError("subsampling leaves no frame of an utterance")
            features, lengths = layer(features[:, : int(lengths.max())], lengths)
        return self.linear(features), lengths
