"""Permutation-invariant loss of diarization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from s3prl_mtl.nn.padding import frame_mask


def permutation_invariant_bce(
    logits: Tensor, labels: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy under the best permutation of the speakers of each chunk.

    The loss of a chunk is the sum over frames of the mean over speakers; the loss of the batch is
    the sum over chunks divided by the total number of frames. Padded frames are excluded. The
    best permutation is found by linear assignment, which is fast for any number of speakers.

    Args:
        logits: (B, T, S).
        labels: (B, T, S), 0 or 1.
        lengths: frames of each chunk (B,).

    Returns:
        The loss, a scalar, and the best permutations (B, S), int64 on the CPU:
        `labels[b][:, permutation[b]]` are the labels in the order of the logits.

    Reference: Fujita et al., "End-to-end neural speaker diarization with permutation-free
    objectives", Interspeech 2019, equation 3.
    """
    speakers = logits.shape[2]
    shape = (*logits.shape, speakers)
    mask = frame_mask(lengths, logits.shape[1], logits.device)[:, :, None, None]
    # costs[b, i, j]: cross-entropy of output i against speaker j, summed over frames of chunk b.
    costs = F.binary_cross_entropy_with_logits(
        logits.float().unsqueeze(3).expand(shape),
        labels.to(logits.device).float().unsqueeze(2).expand(shape),
        reduction="none",
    )
    costs = costs.masked_fill(~mask, 0.0).sum(dim=1)
    orders = torch.stack(
        [
            torch.from_numpy(linear_sum_assignment(chunk)[1])
            for chunk in torch.nan_to_num(costs.detach()).cpu().numpy()
        ]
    )
    best = costs.gather(2, orders.to(costs.device).unsqueeze(2)).squeeze(2)
    return best.mean(dim=1).sum() / lengths.sum().to(costs), orders
