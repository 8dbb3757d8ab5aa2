"""Diarization head: speech activity of each speaker in each frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DiarizationHead(nn.Module):
    """A unidirectional LSTM, then one logit per speaker: SUPERB's diarization head.

    Because the LSTM only reads forwards, padding at the end does not affect real frames.
    Parameters are named as in s3prl: `rnn`, `linear`.

    Args:
        input_dim: width of the features.
        num_speakers: speakers per recording.
        rnn_layers: number of LSTM layers (1 in SUPERB); 0 for a linear layer only.
        hidden_size: width of the LSTM (512 in SUPERB).
    """

    def __init__(
        self, input_dim: int, num_speakers: int, rnn_layers: int = 1, hidden_size: int = 512
    ) -> None:
        super().__init__()
        self.rnn: nn.LSTM | None = None
        if rnn_layers > 0:
            self.rnn = nn.LSTM(input_dim, hidden_size, num_layers=rnn_layers, batch_first=True)
            input_dim = hidden_size
        self.linear = nn.Linear(input_dim, num_speakers)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, T, num_speakers) of features (B, T, input_dim)."""
        if self.rnn is not None:
            features, _ = self.rnn(features)
        return self.linear(features)


def match_length(features: Tensor, label_length: int) -> Tensor:
    """Match the frame rate and the length of a chunk's features to its labels.

    If `round(label_length / T)` is above 1, each frame is repeated that many times. Then the end
    is truncated, or padded with copies of the last frame.

    Args:
        features: (T, D).
        label_length: number of frames of the labels.

    Returns:
        (label_length, D).

    Raises:
        ValueError: `features` is empty.

    Source: SUPERB's diarization.
    """
    if len(features) == 0:
        raise ValueError("cannot match the length of a chunk without frames")
    repeats = round(label_length / len(features))
    if repeats > 1:
        features = features.repeat_interleave(repeats, dim=0)
    missing = label_length - len(features)
    if missing > 0:
        features = torch.cat([features, features[-1:].expand(missing, -1)])
    return features[:label_length]
