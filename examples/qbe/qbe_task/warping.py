"""Subsequence dynamic time warping of a query onto a batch of documents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def frame_distances(query: Tensor, documents: Tensor, exponential: bool = True) -> Tensor:
    """Distances of the frames of a query to the frames of documents.

    Args:
        query: (L, N, D), frames of norm 1.
        documents: (L, B, M, D), frames of norm 1.
        exponential: exp(cosine distance) - 1 instead of the cosine distance.

    Returns:
        (L, B, N, M).
    """
    cosine = 1.0 - torch.einsum("lnd,lbmd->lbnm", query, documents)
    return cosine.exp() - 1.0 if exponential else cosine


def rescale(distances: Tensor, valid: Tensor) -> Tensor:
    """Scale the distances of each query frame to [0, 1] over the document.

    Args:
        distances: (L, B, N, M).
        valid: (B, M), False at padding.
    """
    own = valid[None, :, None, :]
    lowest = distances.masked_fill(~own, torch.inf).amin(dim=-1, keepdim=True)
    highest = distances.masked_fill(~own, -torch.inf).amax(dim=-1, keepdim=True)
    return (distances - lowest) / (highest - lowest).clamp(min=1e-9)


def subsequence_cost(distances: Tensor, valid: Tensor) -> Tensor:
    """The mean distance along the best path of a query through any segment of a document.

    The path visits every frame of the query once, and advances by zero to two frames of the
    document in between (the step pattern `asymmetric` of H. Sakoe and S. Chiba, 1978, as in
    SUPERB). It starts and ends at any frame of the document.

    Args:
        distances: (L, B, N, M).
        valid: (B, M), False at padding.

    Returns:
        (L, B).
    """
    distances = distances.masked_fill(~valid[None, :, None, :], torch.inf)
    query_frames = distances.shape[2]
    cost = distances[:, :, 0]
    for i in range(1, query_frames):
        before = F.pad(cost, (2, 0), value=torch.inf)
        best = torch.minimum(torch.minimum(before[..., 2:], before[..., 1:-1]), before[..., :-2])
        cost = best + distances[:, :, i]
    return cost.amin(dim=-1) / query_frames
