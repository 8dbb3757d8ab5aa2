"""Rounding: how tables, figures and pages show a number."""

from __future__ import annotations

import math

from s3prl_mtl.study.results import Cell, Column

MINUS = "−"
PLUS_MINUS = " ± "


def shown_value(column: Column, value: float) -> str:
    """A value or a standard deviation: percent with two decimals, other units with four digits."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.2f}" if column.metric.percent else f"{value:.4g}"


def shown_cell(column: Column, cell: Cell) -> str:
    """The mean, with the standard deviation of several seeds; empty without a value."""
    if cell.mean is None:
        return ""
    text = shown_value(column, cell.mean)
    if cell.deviation is not None:
        text += PLUS_MINUS + shown_value(column, cell.deviation)
    return text


def shown_effect(effect: float) -> str:
    """A relative change in percent, with its sign: two digits, or the integer part."""
    percent = 100 * effect
    text = f"{percent:+.1f}" if abs(percent) < 9.95 else f"{percent:+.0f}"
    return text.replace("-", MINUS)


def shown_weight(value: float) -> str:
    """A weight of a layer, or the cosine of two gradients."""
    return f"{value:.2f}".replace("-", MINUS)


def shown_metric(value: float) -> str:
    """Any value of a curve."""
    return f"{value:.4g}".replace("-", MINUS)
