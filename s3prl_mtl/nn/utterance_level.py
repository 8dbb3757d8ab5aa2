"""Utterance-level head: pooling over frames, then a linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.nn.frame_level import FrameLevel
from s3prl_mtl.nn.padding import frame_mask
from s3prl_mtl.nn.transfer import to_device


class MeanPooling(nn.Module):
    """Mean over the real frames: (B, T, D) and lengths (B,) to (B, D)."""

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        padded = ~frame_mask(lengths, features.shape[1], features.device)
        total = features.masked_fill(padded.unsqueeze(-1), 0.0).sum(dim=1)
        return total / to_device(lengths, total.device).to(total).unsqueeze(-1)


POOLINGS: dict[str, type[nn.Module]] = {"MeanPooling": MeanPooling}


class UtteranceLevel(nn.Module):
    """Pooling over frames, then a linear layer: SUPERB's classification head.

    Used by keyword spotting, intent classification, speaker identification and emotion
    recognition. The linear layer is named `post_net.linear`, as in s3prl.

    Args:
        input_dim: width of the features.
        output_dim: number of outputs per utterance.
        pooling: `MeanPooling`.

    Raises:
        UserError: unknown pooling.
    """

    def __init__(self, input_dim: int, output_dim: int, pooling: str = "MeanPooling") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise UserError(
                f"Unknown pooling {pooling!r}.",
                where="UtteranceLevel.pooling",
                fix=nearest(str(pooling), list(POOLINGS)),
                code="unknown-name",
            )
        self.pooling = POOLINGS[pooling]()
        self.post_net = FrameLevel(input_dim, output_dim)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, output_dim) of features (B, T, input_dim) with lengths (B,)."""
        logits, _ = self.post_net(self.pooling(features, lengths), lengths)
        return logits
