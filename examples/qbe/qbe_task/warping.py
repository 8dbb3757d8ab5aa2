"""Dynamic time warping of a query onto any stretch of many documents at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def frame_distances(query: Tensor, documents: Tensor, exponential: bool = True) -> Tensor:
    """How unlike each frame of a query is to each of documents.

    Args:
        query: (L, N, D), frames of length 1.
        documents: (L, B, M, D), frames of length 1.
        exponential: exp(cosine distance) - 1, in the place of the cosine distance.

    Returns:
        (L, B, N, M).
    """
    cosine = 1.0 - torch.einsum("lnd,lbmd->lbnm", query, documents)
    return cosine.exp() - 1.0 if exponential else cosine


def rescale(distances: Tensor, valid: Tensor) -> Tensor:
    """Each query frame's distances brought to [0, 1] over the document.

    Args:
        distances: (L, B, N, M).
        valid: (B, M), which frames are the document's own.
    """
    own = valid[None, :, None, :]
    lowest = distances.masked_fill(~own, torch.inf).amin(dim=-1, keepdim=True)
    highest = distances.masked_fill(~own, -torch.inf).amax(dim=-1, keepdim=True)
    return (distances - lowest) / (highest - lowest).clamp(min=1e-9)


def subsequence_cost(distances: Tensor, valid: Tensor) -> Tensor:
    """The mean distance along the best path of a query through any stretch of a document.

    The path takes every frame of the query once; from one to the next it stays on the document's
    frame, or goes on by one or two (the step pattern `asymmetric` of H. Sakoe and S. Chiba, 1978,
    as SUPERB uses it). It begins and ends where it likes.

    Args:
        distances: (L, B, N, M).
        valid: (B, M), which frames are the document's own.

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
