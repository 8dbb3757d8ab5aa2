"""The head that says, for every frame, which speakers speak."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DiarizationHead(nn.Module):
    """An LSTM over time, then one logit per speaker: SUPERB's diarization.

    It reads forwards only, so padding at the end changes nothing before it. Parameters are named
    as in s3prl: `rnn`, `linear`.

    Args:
        input_dim: width of the features.
        num_speakers: speakers per recording.
        rnn_layers: layers of the LSTM (1 in SUPERB); 0 leaves only the linear layer.
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
    """Brings the features of one chunk to the rate and the length of its labels.

    Each frame is repeated `round(label_length / T)` times where that is more than once; then the
    end is cut off, or filled with the last frame.

    Args:
        features: (T, D).
        label_length: frames of the labels.

    Returns:
        (label_length, D).

    Raises:
        ValueError: there is no frame.

    Source: SUPERB's diarization.
    """
    if len(features) == 0:
        raise ValueError("a chunk without a frame cannot be brought to the length of its labels")
    repeats = round(label_length / len(features))
    if repeats > 1:
        features = features.repeat_interleave(repeats, dim=0)
    missing = label_length - len(features)
    if missing > 0:
        features = torch.cat([features, features[-1:].expand(missing, -1)])
    return features[:label_length]
