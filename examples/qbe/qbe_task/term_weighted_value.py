"""The term weighted value of NIST's spoken term detection evaluations (Fiscus et al., 2007)."""

from __future__ import annotations

import torch
from torch import Tensor


def false_alarm_weight(target_prior: float, miss_cost: float, false_alarm_cost: float) -> float:
    """The weight beta of the false alarm rate relative to the miss rate."""
    return false_alarm_cost * (1.0 - target_prior) / (miss_cost * target_prior)


def maximum_term_weighted_value(scores: Tensor, targets: Tensor, weight: float) -> float:
    """The maximum term weighted value over all thresholds, each for all queries.

    TWV = 1 - mean over the queries of (miss rate + weight * false alarm rate), where a document is
    found if its score is above the threshold. A threshold that finds nothing has the value 0.

    Args:
        scores: (queries, documents), higher if the query is more likely in the document.
        targets: (queries, documents), whether it is. Queries without a document are not counted.
        weight: of false alarms, :func:`false_alarm_weight`.

    Raises:
        ValueError: no query occurs in any document.
    """
    somewhere = targets.any(dim=1)
    if not somewhere.any():
        raise ValueError("no query occurs in any document")
    scores, targets = scores[somewhere].double(), targets[somewhere]
    queries = len(scores)
    hits = targets.sum(dim=1, keepdim=True).double()
    others = (~targets).sum(dim=1, keepdim=True).double()
    # Change of the value when a document is found.
    gains = torch.where(targets, 1.0 / hits, -weight / others.clamp(min=1.0)) / queries
    ordered, order = scores.flatten().sort(descending=True)
    values = gains.flatten()[order].cumsum(dim=0)
    # Documents of equal scores are found together or not at all.
    ends = torch.ones_like(ordered, dtype=torch.bool)
    ends[:-1] = ordered[1:] < ordered[:-1]
    return max(0.0, float(values[ends].max()))
