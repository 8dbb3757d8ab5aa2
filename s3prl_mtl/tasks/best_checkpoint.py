"""Selection of the best checkpoint of a task: its metric, and whether a score is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.tasks.metric import Metric, metrics_of, place_of


def selecting_metric_of(expert_class: type) -> Metric:
    """The metric that selects the best checkpoint of a task: `selected_by`, or the first.

    Raises:
        UserError: the class declares no metrics, or `selected_by` is not one of them.
    """
    metrics = metrics_of(expert_class)
    if not metrics:
        raise UserError(
            "The expert declares no metrics.",
            where=place_of(expert_class, "metrics"),
            fix='For example: metrics = (Metric("acc", "higher", "accuracy"),).',
            code="expert-invalid",
        )
    wanted = getattr(expert_class, "selected_by", None)
    for metric in metrics:
        if wanted is None or metric.name == wanted:
            return metric
    raise UserError(
        f"`selected_by` is {wanted!r}, which is not one of the metrics.",
        where=place_of(expert_class, "selected_by"),
        fix=nearest(str(wanted), [metric.name for metric in metrics]),
        code="expert-invalid",
    )


def first_score(expert_class: type) -> float:
    """The initial best score: `worst_score`, or the worst value of the selecting metric.

    Raises:
        UserError: `worst_score` is not a number, or as :func:`selecting_metric_of`.
    """
    worst = selecting_metric_of(expert_class).worst
    stated = getattr(expert_class, "worst_score", None)
    if stated is None:
        return worst
    if isinstance(stated, bool) or not isinstance(stated, int | float) or math.isnan(stated):
        raise UserError(
            f"`worst_score` is {stated!r}, not a number.",
            where=place_of(expert_class, "worst_score"),
            fix="Leave it out to start from the worst value of the metric.",
            code="expert-invalid",
        )
    return float(stated)


def update_best_score(best_score: Tensor, metric: Metric, values: Mapping[str, float]) -> bool:
    """Keep the score of an evaluation if it improves on the best one.

    Args:
        best_score: the best score so far, float32 (1,); overwritten by a better one.
        metric: the selecting metric.
        values: the metrics of the evaluation, and its `loss`, by name.

    Returns:
        Whether the score improved. It does not if the loss is NaN.
    """
    # Scores of a head that outputs NaN are defined, but those of arbitrary hypotheses.
    if metric.name not in values or math.isnan(values.get("loss", 0.0)):
        return False
    # Rounded as in the buffer: otherwise an equal value could count as an improvement.
    score = torch.tensor(values[metric.name], dtype=torch.float32).item()
    if not math.isfinite(score) or not metric.improves(score, best_score.item()):
        return False
    best_score.fill_(score)
    return True
