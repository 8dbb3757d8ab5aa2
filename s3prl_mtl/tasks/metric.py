"""Metrics, and the other declarations of an expert's class."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError

_MISSING = object()


@dataclass(frozen=True)
class Metric:
    """A number that an expert reports.

    Args:
        name: its key in `results.json`, such as `"wer"`.
        better: `"lower"` or `"higher"`.
        title: its heading in tables, such as `"WER"`.
        headline: shown in the short table of a run; the first metric of a task always is.
        range: the lowest and the highest possible value, both included; by default those of a
            fraction. An error rate that counts insertions is unbounded: `(0.0, math.inf)`.
        percent: whether tables show 100 times the value, as percent. False for values that are not
            fractions: a squared error, decibels.
        optional: reported under some settings only, such as with a language model.
    """

    name: str
    better: str
    title: str
    headline: bool = False
    range: tuple[float, float] = (0.0, 1.0)
    percent: bool = True
    optional: bool = False

    @classmethod
    def of(cls, declared: Any) -> Metric:
        """A metric from any object with at least `name`, `better` and `title`.

        Raises:
            TypeError: one of these is missing.
        """
        names = [field.name for field in fields(cls) if hasattr(declared, field.name)]
        return cls(**{name: getattr(declared, name) for name in names})

    @property
    def interval(self) -> str:
        """The range in interval notation: `[0, 1]`, `[0, inf)`."""
        lowest, highest = self.range
        opening, closing = "(" if lowest == -math.inf else "[", ")" if highest == math.inf else "]"
        return f"{opening}{lowest:g}, {highest:g}{closing}"

    @property
    def worst(self) -> float:
        """The initial best value, which every other value improves on.

        Infinite where lower is better, whatever the range, so that the first value counts.
        """
        return math.inf if self.better == "lower" else float(self.range[0])

    def improves(self, value: float, best: float) -> bool:
        return value < best if self.better == "lower" else value > best

    def shown(self, value: float) -> str:
        """A value in tables and the log: `12.34 %`, or `12.34` if it is not shown as percent."""
        if math.isnan(value):
            return "not a number"
        return f"{100 * value:.2f} %" if self.percent else f"{value:.5g}"


def place_of(expert_class: type, attribute: str) -> str:
    """The name of a class attribute in errors."""
    return f"`{attribute}` of {expert_class.__module__}.{expert_class.__qualname__}"


def metrics_of(expert: Any) -> tuple[Metric, ...]:
    """The metrics that an expert or its class declares; empty if it declares none.

    Raises:
        UserError: `metrics` is not a list or tuple of metrics.
    """
    expert_class = expert if isinstance(expert, type) else type(expert)
    # What only an instance has is not a declaration: s3prl's `ctc` keeps names of its own there.
    declared = getattr(expert, "metrics", None) if hasattr(expert_class, "metrics") else None
    where = place_of(expert_class, "metrics")
    fix = 'For example: metrics = (Metric("acc", "higher", "accuracy"),).'
    if declared is None or isinstance(declared, property):
        return ()
    if not isinstance(declared, list | tuple | str) or hasattr(declared, "_fields"):
        raise UserError(
            f"`metrics` is {declared!r:.60}, not a tuple of metrics.",
            where=where,
            fix=fix,
            code="expert-invalid",
        )
    return tuple(_metric(entry, where, fix) for entry in declared)


def _metric(entry: Any, where: str, fix: str) -> Metric:
    try:
        metric = Metric.of(entry)
    except TypeError as cause:
        what = f"`metrics` holds {entry!r:.60}, which is not a Metric."
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
            f"{metric.name}: its range is {metric.range!r}, not the lowest and the highest value.",
            where=where,
            fix="For example: range=(0.0, math.inf).",
            code="expert-invalid",
        )
    return metric


def check_name(expert_class: type) -> None:
    """Check the name of a `TaskExpert` class.

    Raises:
        UserError: it is missing or wrong.
    """
    name = getattr(expert_class, "name", _MISSING)
    if not isinstance(name, str) or not name:
        what = "has no name" if name is _MISSING else f"has a `name` that is not a string: {name!r}"
        raise UserError(
            f"The expert {what}.",
            where=place_of(expert_class, "name"),
            fix='The name is what users type after -d: name = "lid".',
            code="expert-invalid",
        )


def settings_file(expert_class: type) -> Path | None:
    """The path of a task's `config.yaml`, beside its module; None if the module has no file."""
    module = sys.modules.get(expert_class.__module__)
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file).parent / "config.yaml"


def add_settings_file(expert_class: type) -> str:
    """The remedy for a `config.yaml` that is not installed beside the module of a task."""
    package = sys.modules[expert_class.__module__].__package__
    if not package:
        module = expert_class.__module__
        return (
            f"Move {module}.py to {module}/__init__.py, as only packages have data files, write "
            "config.yaml beside it, and install the package again."
        )
    return (
        "Write it (docs/plugins.md, The settings), add the line "
        f'`"{package}" = ["*.yaml"]` under [tool.setuptools.package-data] in pyproject.toml, and '
        "install the package again."
    )
