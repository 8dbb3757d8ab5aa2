"""Sections on the course of runs: curves, layer weights, conflicts, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from s3prl_mtl.study import page
from s3prl_mtl.study.figures import Curve, curves_figure, heat_map
from s3prl_mtl.study.numbers import shown_metric, shown_weight
from s3prl_mtl.study.page import Section
from s3prl_mtl.study.report_files import ReportFiles
from s3prl_mtl.tasks.metric import Metric
from s3prl_mtl.training.run_record import RunRecord, common_settings, flat

SMALL_COSINE = 0.2
"""Cosines of the gradients below it never have the strongest colour: most are noise."""


@dataclass(frozen=True)
class CurvesOf:
    """The curves of a figure.

    Attributes:
        name: of its files.
        task: the heading of the task.
        metric: of all curves; the loss if None.
        curves: of fractions where the metric is shown as percent.
    """

    name: str
    task: str
    metric: Metric | None
    curves: Sequence[Curve]


def curves_section(
    report: ReportFiles, title: str, introduction: str, drawn: Sequence[CurvesOf]
) -> list[Section]:
    """A figure for each task with curves; no section without any."""
    figures = [_curves(report, one) for one in drawn if one.curves]
    if not figures:
        return []
    body = page.paragraphs([introduction] if introduction else []) + page.side_by_side(figures)
    return [Section(title.lower().replace(" ", "-"), title, body)]


def _curves(report: ReportFiles, drawn: CurvesOf) -> str:
    metric = drawn.metric
    what = metric.title if metric is not None else "loss"
    better = metric.better if metric is not None else "lower"
    percent = metric is not None and metric.percent
    best = max if better == "higher" else min
    lines = [
        Curve(one.label, one.steps, [(100 if percent else 1) * v for v in one.values], one.style)
        for one in drawn.curves
    ]
    rows = [
        [line.label, str(line.steps[-1])]
        + [shown_metric(v) for v in (line.values[0], best(line.values), line.values[-1])]
        for line in lines
    ]
    return report.draw(
        curves_figure(drawn.name, f"{drawn.task} {what}", lines, "%" if percent else ""),
        f"Curves of the {what} of {drawn.task} over the steps. The table below has the first, best "
        "and last values.",
        f"{what}{', %' if percent else ''}; {better} is better.",
        page.table(["run", "steps", "first", "best", "last"], rows, f"{drawn.task} {what}"),
    )


def layers_section(
    report: ReportFiles, records: Mapping[str, RunRecord], which: str = ""
) -> list[Section]:
    """The learned layer weights.

    Args:
        report: the files.
        records: of runs by their labels.
        which: a sentence on the choice of runs, with a blank at its end.
    """
    weighted = {label: r.layer_weights for label, r in records.items() if r.layer_weights}
    layers = sorted({layer for weights in weighted.values() for layer in weights})
    if not layers:
        return []
    matrix = [[weights.get(layer) for layer in layers] for weights in weighted.values()]
    limit = max(value for row in matrix for value in row if value is not None)
    drawing = heat_map(
        "layer-weights",
        matrix,
        list(weighted),
        [str(layer) for layer in layers],
        _two_digits,
        limit,
    )
    rows = [
        [label, *("" if v is None else shown_weight(v) for v in row)]
        for label, row in zip(weighted, matrix, strict=True)
    ]
    body = report.draw(
        drawing,
        "Heat map of the learned weight of each layer in each run; the table has its numbers.",
        f"{which}Weights of the hidden states in the features, in hundredths; a row sums to 1. "
        "Column 0 is the input of the first layer.",
        page.table(["run", *(f"layer {layer}" for layer in layers)], rows, "layer weights"),
    )
    return [Section("layers", "Layer weights", body)]


def _two_digits(value: float) -> str:
    return f"{100 * value:.0f}"


def conflicts_section(
    report: ReportFiles, records: Mapping[str, RunRecord], heading: Callable[[str], str]
) -> list[Section]:
    """The cosines of the first run whose gradients were compared."""
    label, record = next(
        ((label, r) for label, r in records.items() if r.gradient_groups), (None, None)
    )
    if record is None or label is None:
        return []
    groups = record.gradient_groups
    group = "all" if "all" in groups else groups[0]
    names = [heading(task) for task in record.tasks]
    matrix = record.cosines(group)
    rows = [
        [name, *("" if v is None else shown_weight(v) for v in row)]
        for name, row in zip(names, matrix, strict=True)
    ]
    largest = max((abs(v) for row in matrix for v in row if v is not None), default=0.0)
    limit = max(largest, SMALL_COSINE)
    shares = [
        [one, "" if share is None else shown_weight(share)]
        for one in groups
        for share in [record.gradient_metric(one, "conflicting_pairs")]
    ]
    body = report.draw(
        heat_map("conflicts", matrix, names, names, shown_weight, limit),
        "Heat map of the cosine between the gradients of each pair of tasks; the table below has "
        "its numbers.",
        f"Cosine of the gradients of each pair of tasks in {label}, mean of the last measurements. "
        "Blue: they agree; orange: they conflict. Near 0 is the usual case.",
        page.table(["", *names], rows, "cosines"),
    ) + page.details(
        "Share of conflicting pairs by group of layers",
        page.table(["layers", "share"], shares, "conflicting pairs"),
    )
    return [Section("conflicts", "Conflicts between tasks", body)]


def settings_section(records: Mapping[str, RunRecord]) -> list[Section]:
    """The settings that all runs share, and those that differ."""
    if not records:
        return []
    settings = [dict(flat(record.config)) for record in records.values()]
    versions = [dict(record.versions) for record in records.values()]
    body = _shared_and_own("settings", list(records), settings)
    body += _shared_and_own("versions", list(records), versions)
    if not any(versions):
        body += page.paragraphs(["The versions of the packages were not recorded."])
    return [Section("settings", "Settings and versions", f'<div class="settings">{body}</div>')]


def _shared_and_own(what: str, labels: Sequence[str], entries: Sequence[Mapping[str, str]]) -> str:
    shared, own = common_settings(entries)
    single = len(labels) == 1
    text = ""
    if shared:
        title = what.capitalize() if single else f"{what.capitalize()} that all runs share"
        text += page.details(title, page.definitions(shared, what))
    parts = [
        page.details(label, page.definitions(entry, f"{what} of {label}"))
        for label, entry in zip(labels, own, strict=True)
        if entry
    ]
    if parts:
        text += page.details(f"{what.capitalize()} of each run", "".join(parts))
    return text
