"""Additive-margin softmax loss for speaker verification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_mtl.nn.transfer import to_device


class AMSoftmaxLoss(nn.Module):
    """Cross-entropy over scaled cosine similarities, with a margin on the true speaker.

    `-log softmax(s * (cos(x, W_j) - m * [j is the speaker]))`, mean over the batch. The only
    parameter is `W` (hidden_dim, speaker_num), as in s3prl.

    Args:
        hidden_dim: width of the embeddings.
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

    def forward(self, embeddings: Tensor, speakers: Tensor) -> Tensor:
        """Mean loss over the batch.

        Args:
            embeddings: (B, hidden_dim).
            speakers: index of the true speaker (B,), int64, on the CPU: its values are checked.

        Returns:
            A scalar.

        Raises:
            ValueError: an index is outside 0 to speaker_num - 1.
        """
        if int(speakers.min()) < 0 or int(speakers.max()) >= self.W.shape[1]:
            raise ValueError(
                f"speakers must be from 0 to {self.W.shape[1] - 1}, "
                f"found {int(speakers.min())} to {int(speakers.max())}"
            )
        speakers = to_device(speakers, embeddings.device)
        # Half precision is too coarse for cosines multiplied by 30.
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = F.normalize(embeddings.float(), dim=1) @ F.normalize(self.W.float(), dim=0)
            margins = self.m * F.one_hot(speakers, self.W.shape[1])
            return F.cross_entropy(self.s * (cosines - margins), speakers)
