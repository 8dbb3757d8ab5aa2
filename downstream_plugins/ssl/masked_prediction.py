"""HuBERT's loss on the classes of frames (Hsu et al., 2021, https://arxiv.org/abs/2106.07447)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def class_logits(projected: Tensor, embeddings: Tensor, temperature: float) -> Tensor:
    """Cosine similarities to the embedding of each class, divided by a temperature.

    Args:
        projected: (frames, width).
        embeddings: (classes, width).
        temperature: `logit_temp`; HuBERT's is 0.1.

    Returns:
        float32 (frames, classes).
    """
    # The epsilon of torch's cosine_similarity, which fairseq uses.
    frames = F.normalize(projected.float(), dim=-1, eps=1e-8)
    return frames @ F.normalize(embeddings.float(), dim=-1, eps=1e-8).t() / temperature


def without_duplicates(logits: Tensor, targets: Tensor, embeddings: Tensor) -> Tensor:
    """Logits with minus infinity at other classes whose embedding equals the target's, as in
    fairseq.

    Args:
        logits: (frames, classes).
        targets: int64 (frames,).
        embeddings: (classes, width).
    """
    _, kind = torch.unique(embeddings.detach(), dim=0, return_inverse=True)
    duplicates = kind[targets][:, None] == kind
    duplicates.scatter_(1, targets[:, None], False)
    return logits.masked_fill(duplicates, -torch.inf)


def summed_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of frames, in nats, and the number of correct frames.

    A class that ties with the target counts as correct.

    Args:
        logits: (frames, classes).
        targets: int64 (frames,).
    """
    scores = logits.detach()
    target_scores = scores.gather(1, targets[:, None])
    correct = (scores <= target_scores).all(1).sum()
    return F.cross_entropy(logits, targets, reduction="sum"), correct
