"""X-vector head: a speaker embedding of an utterance of any length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_mtl.nn.padding import frame_mask
from s3prl_mtl.nn.transfer import to_device

CONTEXTS_AND_DILATIONS = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))


class TDNN(nn.Module):
    """Time-delay layer: a linear layer (`kernel`) over `context_size` frames, `dilation` apart.

    Reference: Peddinti et al., "A time delay neural network architecture for efficient modeling
    of long temporal contexts", Interspeech 2015.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        context_size: int,
        dilation: int,
        dropout_p: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.context_size = context_size
        self.dilation = dilation
        self.kernel = nn.Linear(input_dim * context_size, output_dim)
        self.drop = nn.Dropout(dropout_p)
        self.bn = nn.BatchNorm1d(output_dim) if batch_norm else None

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, input_dim) to (B, T - (context_size - 1) * dilation, output_dim)."""
        frames = features.shape[1] - (self.context_size - 1) * self.dilation
        stacked = [features[:, i * self.dilation :][:, :frames] for i in range(self.context_size)]
        # A matrix product: torch compiles a convolution anew for every length.
        hidden = self.kernel(stacked[0] if len(stacked) == 1 else torch.cat(stacked, dim=-1))
        hidden = self.drop(F.relu(hidden))
        if self.bn is not None:
            hidden = self.bn(hidden.transpose(1, 2)).transpose(1, 2)
        return hidden


class FrameFeatures(nn.Module):
    """The five time-delay layers, `module.0` to `module.4`."""

    def __init__(self, input_dim: int, agg_dim: int, dropout_p: float, batch_norm: bool) -> None:
        super().__init__()
        widths = [input_dim] * (len(CONTEXTS_AND_DILATIONS) - 1) + [agg_dim]
        self.module = nn.Sequential(
            *(
                TDNN(input_dim, width, context, dilation, dropout_p, batch_norm)
                for width, (context, dilation) in zip(widths, CONTEXTS_AND_DILATIONS, strict=True)
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.module(features)


class UtteranceFeatures(nn.Module):
    """Layers after pooling: `linear1` gives the embedding, `linear2` the input of the loss."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(input_dim, output_dim)
        self.linear2 = nn.Linear(output_dim, output_dim)

    def embed(self, statistics: Tensor) -> Tensor:
        return F.relu(self.linear1(statistics))

    def forward(self, statistics: Tensor) -> Tensor:
        return F.relu(self.linear2(self.embed(statistics)))


def statistics_pooling(features: Tensor, lengths: Tensor) -> Tensor:
    """Mean and unbiased standard deviation over the first `lengths` frames: (B, 2 D)."""
    padded = ~frame_mask(lengths, features.shape[1], features.device).unsqueeze(-1)
    counts = to_device(lengths, features.device).to(features).unsqueeze(-1)
    means = features.masked_fill(padded, 0.0).sum(dim=1) / counts
    centred = (features - means.unsqueeze(1)).masked_fill(padded, 0.0)
    # Dead ReLU channels have zero deviation. There the gradient of a norm is zero; that of the
    # square root of a variance would be NaN.
    deviations = torch.linalg.vector_norm(centred, dim=1) / (counts - 1).sqrt()
    return torch.cat([means, deviations], dim=1)


class XVector(nn.Module):
    """SUPERB's speaker verification head, between the `connector` layer and the loss.

    Parameters are named as in s3prl: `framelevel_feature_extractor.module.N.kernel`,
    `utterancelevel_feature_extractor.linear1` and `.linear2`.

    .. note::
        s3prl pools one frame too many of every utterance shorter than the longest of its batch:
        the first frame with padding in its context. `pool_padding_frame=True` reproduces this,
        and with it SUPERB's losses and gradients; features must then be padded with zeros
        *before* the connector. With `False` the result of an utterance does not depend on the
        rest of the batch. Both give the same for a batch of one utterance.

    Args:
        input_dim: width of features, embedding and output (512 in SUPERB).
        agg_dim: width of the pooled frames (1500 in SUPERB).
        dropout_p: dropout after each time-delay layer.
        batch_norm: batch normalisation after each time-delay layer.

    Reference: Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", 2018.
    """

    context_frames = 1 + sum((c - 1) * d for c, d in CONTEXTS_AND_DILATIONS)
    """Receptive field of the time-delay layers: 15 frames."""

    min_frames = context_frames + 1
    """Frames needed for a standard deviation: 16."""

    def __init__(
        self,
        input_dim: int,
        agg_dim: int = 1500,
        dropout_p: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.framelevel_feature_extractor = FrameFeatures(input_dim, agg_dim, dropout_p, batch_norm)
        self.utterancelevel_feature_extractor = UtteranceFeatures(2 * agg_dim, input_dim)

    def forward(self, features: Tensor, lengths: Tensor, pool_padding_frame: bool = True) -> Tensor:
        """Input of the training loss (B, input_dim), after `linear2` and ReLU.

        Args:
            features: (B, T, input_dim), padded.
            lengths: frames of each utterance (B,).
            pool_padding_frame: see the note of the class.

        Raises:
            ValueError: an utterance has fewer than `min_frames` frames.
        """
        statistics = self._pool(features, lengths, pool_padding_frame)
        return self.utterancelevel_feature_extractor(statistics)

    def embed(self, features: Tensor, lengths: Tensor, pool_padding_frame: bool = True) -> Tensor:
        """Embeddings (B, input_dim), after `linear1` and ReLU.

        SUPERB scores a trial by the cosine similarity of two embeddings. Arguments and errors are
        those of `forward`.
        """
        statistics = self._pool(features, lengths, pool_padding_frame)
        return self.utterancelevel_feature_extractor.embed(statistics)

    def _pool(self, features: Tensor, lengths: Tensor, pool_padding_frame: bool) -> Tensor:
        shortest = int(lengths.min())
        if shortest < self.min_frames:
            raise ValueError(
                f"an x-vector needs {self.min_frames} frames; an utterance has {shortest}"
            )
        hidden = self.framelevel_feature_extractor(features)
        lengths = lengths - (self.context_frames - 1)
        if pool_padding_frame:
            lengths = (lengths + 1).clamp(max=hidden.shape[1])
        return statistics_pooling(hidden, lengths)
