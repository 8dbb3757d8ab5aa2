"""What the class of a task declares: its name, its metrics, which of them selects, its corpus."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError, nearest

_MISSING = object()


@dataclass(frozen=True)
class Metric:
    """A number that an expert reports, and which direction is better.

    Args:
        name: as it appears in `results.json`, such as `"wer"`.
        better: `"lower"` or `"higher"`.
        title: how tables show it, such as `"WER"`.
        headline: shown in the short table of a run; the first metric of a task always is.
        range: the lowest and the highest value that there can be, both included; a fraction of a
            whole by default. A rate of errors that counts insertions has no upper end:
            `(0.0, math.inf)`.
        percent: tables show it as percent, 100 times the value. False shows the value as it is,
            for what is no fraction: a squared error, decibels.
    """

    name: str
    better: str
    title: str
    headline: bool = False
    range: tuple[float, float] = (0.0, 1.0)
    percent: bool = True

    @classmethod
    def of(cls, declared: Any) -> Metric:
        """What an expert declares, which may be a look-alike with fewer attributes than this.

        Raises:
            TypeError: it has no name, title or direction.
        """
        names = [field.name for field in fields(cls) if hasattr(declared, field.name)]
        return cls(**{name: getattr(declared, name) for name in names})

    @property
    def interval(self) -> str:
        """The range as mathematics writes it: `[0, 1]`, `[0, inf)`."""
        lowest, highest = self.range
        opening, closing = "(" if lowest == -math.inf else "[", ")" if highest == math.inf else "]"
        return f"{opening}{lowest:g}, {highest:g}{closing}"

    @property
    def worst(self) -> float:
        """Where the search for the best value starts: what any other value improves on.

        It is infinite where lower is better, whatever the range: the first value counts.
        """
        return math.inf if self.better == "lower" else float(self.range[0])

    def improves(self, value: float, best: float) -> bool:
        return value < best if self.better == "lower" else value > best

    def shown(self, value: float) -> str:
        """A value as tables show it: `12.34 %`, or as it is."""
        return f"{100 * value:.2f} %" if self.percent else f"{value:.5g}"


def place_of(expert_class: type, attribute: str) -> str:
    """How errors name an attribute of a class."""
    return f"`{attribute}` of {expert_class.__module__}.{expert_class.__qualname__}"


def metrics_of(expert: Any) -> tuple[Metric, ...]:
    """The metrics that an expert, or its class, declares; none if it declares nothing.

    Raises:
        UserError: what it declares are no metrics.
    """
    expert_class = expert if isinstance(expert, type) else type(expert)
    declared = getattr(expert, "metrics", None)
    where = place_of(expert_class, "metrics")
    fix = 'For example: metrics = (Metric("acc", "higher", "accuracy"),).'
    if declared is None or isinstance(declared, property):
        return ()
    if not isinstance(declared, list | tuple | str) or hasattr(declared, "_fields"):
        raise UserError(
            f"`metrics` is {declared!r:.60}, and no tuple of metrics.",
            where=where,
            fix=fix,
            code="expert-invalid",
        )
    return tuple(_metric(entry, where, fix) for entry in declared)


def _metric(entry: Any, where: str, fix: str) -> Metric:
    try:
        metric = Metric.of(entry)
    except TypeError as cause:
        what = f"`metrics` holds {entry!r:.60}, which is no Metric."
        raise UserError(what, where=where, fix=fix, code="expert-invalid") from cause
    if metric.better not in ("higher", "lower"):
        what = f"{metric.name}: better is {metric.better!r}, not 'higher' or 'lower'."
        raise UserError(what, where=where, fix=fix, code="expert-invalid")
    try:
        lowest, highest = map(float, metric.range)
    except (TypeError, ValueError):
        lowest = highest = math.nan
    if not lowest < highest:
        raise UserError(
            f"{metric.name}: its range is {metric.range!r}, and not the lowest and the highest "
            "value that there can be.",
            where=where,
            fix="For example: range=(0.0, math.inf).",
            code="expert-invalid",
        )
    return metric


def selecting_metric_of(expert_class: type) -> Metric:
    """The metric that decides which checkpoint of a task is its best: `selected_by`, or the first.

    Raises:
        UserError: the class declares no metrics, or not that one.
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
        f"The best checkpoint is to be selected by {wanted!r}, which is none of the metrics.",
        where=place_of(expert_class, "selected_by"),
        fix=nearest(str(wanted), [metric.name for metric in metrics]),
        code="expert-invalid",
    )


def first_score(expert_class: type) -> float:
    """What the first evaluation has to improve on: `worst_score`, or the selecting metric's worst.

    Raises:
        UserError: `worst_score` is no number, or as :func:`selecting_metric_of`.
    """
    worst = selecting_metric_of(expert_class).worst
    stated = getattr(expert_class, "worst_score", None)
    if stated is None:
        return worst
    if isinstance(stated, bool) or not isinstance(stated, int | float) or math.isnan(stated):
        raise UserError(
            f"The score to begin with is {stated!r}, which is no number.",
            where=place_of(expert_class, "worst_score"),
            fix="Leave it out: the worst value of the metric is where a search begins.",
            code="expert-invalid",
        )
    return float(stated)


def check_declarations(expert_class: type) -> None:
    """Refuse the class of a `TaskExpert` that lacks its name or its metrics, or has wrong ones.

    Raises:
        UserError: names the class and the attribute.
    """
    name = getattr(expert_class, "name", _MISSING)
    if not isinstance(name, str) or not name:
        what = "has no name" if name is _MISSING else f"has a `name` that is no text: {name!r}"
        raise UserError(
            f"The expert {what}.",
            where=place_of(expert_class, "name"),
            fix='It is the word after -d: name = "lid".',
            code="expert-invalid",
        )
    first_score(expert_class)


def settings_file(expert_class: type) -> Path | None:
    """Where the `config.yaml` of a task is to lie: beside its module; None without a file."""
    module = sys.modules.get(expert_class.__module__)
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file).parent / "config.yaml"
