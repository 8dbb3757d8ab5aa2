"""Permutation-invariant loss of diarization."""

from __future__ import annotations

from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_mtl.nn.padding import frame_mask
from s3prl_mtl.nn.transfer import to_device

MOST_ENUMERATED = 4
"""Up to so many speakers, all permutations are compared on the device: 24 for four speakers."""


def permutation_invariant_bce(
    logits: Tensor, labels: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy under the best permutation of the speakers of each chunk.

    The loss of a chunk is the sum over frames of the mean over speakers; the loss of the batch is
    the sum over chunks divided by the total number of frames. Padded frames are excluded. More
    than `MOST_ENUMERATED` speakers are permuted by linear assignment on the CPU, which waits for
    the GPU.

    Args:
        logits: (B, T, S).
        labels: (B, T, S), 0 or 1.
        lengths: frames of each chunk (B,), on the CPU.

    Returns:
        The loss, a scalar, and the best permutations (B, S), int64 on the device of the logits:
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
        to_device(labels, logits.device).float().unsqueeze(2).expand(shape),
        reduction="none",
    )
    costs = costs.masked_fill(~mask, 0.0).sum(dim=1)
    # In double precision, as linear assignment computes.
    comparable = torch.nan_to_num(costs.detach()).double()
    orders = _enumerated(comparable) if speakers <= MOST_ENUMERATED else _assigned(comparable)
    best = costs.gather(2, orders.unsqueeze(2)).squeeze(2)
    return best.mean(dim=1).sum() / to_device(lengths.sum(), costs.device), orders


def _enumerated(costs: Tensor) -> Tensor:
    """The first of the cheapest permutations (B, S) of costs (B, S, S), without a wait."""
    chunks, speakers, _ = costs.shape
    orders = to_device(torch.tensor([*permutations(range(speakers))]), costs.device)
    chosen = orders[None, :, :, None].expand(chunks, -1, -1, -1)
    each = costs.unsqueeze(1).expand(-1, len(orders), -1, -1).gather(3, chosen)
    return orders.index_select(0, each.sum(dim=(2, 3)).argmin(dim=1))


def _assigned(costs: Tensor) -> Tensor:
    """The cheapest permutations (B, S) of costs (B, S, S), by linear assignment on the CPU."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    orders = [torch.from_numpy(linear_sum_assignment(chunk)[1]) for chunk in costs.cpu().numpy()]
    return to_device(torch.stack(orders), costs.device)
