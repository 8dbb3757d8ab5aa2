"""Additive-margin softmax: speakers apart by a margin of the cosine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AMSoftmaxLoss(nn.Module):
    """Cross-entropy of scaled cosines, the true speaker's lowered by a margin.

    `-log softmax(s * (cos(x, W_j) - m * [j is the speaker]))`, mean over the batch. The one
    parameter is `W` (hidden_dim, speaker_num), as in s3prl.

    Args:
        hidden_dim: width of the vectors.
        speaker_num: number of training speakers.
        s: scale.
        m: margin.

    Reference: Wang et al., "Additive margin softmax for face verification", 2018, equation 6.
    """

    def __init__(self, hidden_dim: int, speaker_num: int, s: float = 30.0, m: float = 0.4) -> None:
        super().__init__()
        self.s = s
        self.m = m
        self.W = nn.Parameter(nn.init.xavier_normal_(torch.empty(hidden_dim, speaker_num)))

    def forward(self, vectors: Tensor, speakers: Tensor) -> Tensor:
        """The mean loss, a scalar, of vectors (B, hidden_dim) and speakers (B,), int64.

        Raises:
            ValueError: a speaker is none of the training speakers.
        """
        if int(speakers.min()) < 0 or int(speakers.max()) >= self.W.shape[1]:
            raise ValueError(
                f"speakers must be numbers from 0 to {self.W.shape[1] - 1}, "
                f"found {int(speakers.min())} to {int(speakers.max())}"
            )
        # A scale of 30 makes half-precision cosines too coarse.
        with torch.autocast(vectors.device.type, enabled=False):
            cosines = F.normalize(vectors.float(), dim=1) @ F.normalize(self.W.float(), dim=0)
            margins = self.m * F.one_hot(speakers, self.W.shape[1])
            return F.cross_entropy(self.s * (cosines - margins), speakers)
