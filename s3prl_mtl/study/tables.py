"""The table of a study as Markdown, TeX, CSV and on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table
from rich.text import Text

from s3prl_mtl.fileio.text_tables import csv_text
from s3prl_mtl.study.numbers import PLUS_MINUS, shown_cell, shown_value
from s3prl_mtl.study.relations import Effect
from s3prl_mtl.study.results import NAMES, Column, Results, Row

LEFT_OUT = "X"
"""In the cells of the task that a row leaves out, as in the paper; an empty cell has no result."""
ARROWS = {"lower": "↓", "higher": "↑"}


def heading(column: Column) -> str:
    """The name of a metric with the direction that is better."""
    return f"{column.metric.title}{ARROWS.get(column.metric.better, '')}"


def legend(results: Results, means_only: bool = False) -> list[str]:
    """Sentences on how to read the table, and what its numbers depend on.

    Args:
        results: of the table.
        means_only: the table has no deviations and no numbers of the paper.
    """
    lines = ["Bold: better than (b-1); underlined: worse, by the means. Fractions are in percent."]
    if len(results.seeds) > 1:
        shown = "Mean" if means_only else "Mean ± standard deviation"
        lines.append(f"{shown} over {len(results.seeds)} seeds.")
    if any(fewer_seeds(results, *place) for place in results.cells):
        lines.append("Marks compare means over different seeds where a number has fewer of them.")
    if not means_only and any(cell.published is not None for cell in results.cells.values()):
        lines.append("In brackets: the paper's number (HuBERT Base, the full corpora).")
    splits = {c.title: c.split for c in results.columns if c.split not in ("", "test")}
    if splits:
        listed = ", ".join(f"{title} on {split}" for title, split in splits.items())
        lines.append(f"Splits other than test: {listed}.")
    lines += [f"{results.heading(task)}: {text}." for task, text in results.conditions.items()]
    return lines


def missing_runs(results: Results) -> str:
    count = len(results.missing)
    return f"{count} run{'s' if count > 1 else ''} without results"


def missing_lines(results: Results) -> list[str]:
    """A line for each run without results."""
    return [f"{name}: {reason}" for name, reason in results.missing.items()]


def fewer_seeds(results: Results, row: Row, column: Column) -> str:
    """`2 of 3 seeds` for a cell that lacks some; otherwise empty."""
    count = len(results.cell(row, column).values)
    return f"{count} of {len(results.seeds)} seeds" if 0 < count < len(results.seeds) else ""


def _body(
    results: Results, better: Callable[[str], str], worse: Callable[[str], str]
) -> list[list[str]]:
    """The rows of the table with marks, and the paper's numbers in brackets."""
    styles: dict[str | None, Callable[[str], str]] = {"better": better, "worse": worse, None: str}
    body = []
    for row in results.rows:
        cells = [results.label(row)]
        for column in results.columns:
            if row.left_out == column.task:
                cells.append(LEFT_OUT)
                continue
            cell = results.cell(row, column)
            mean, plus_minus, deviation = shown_cell(column, cell).partition(PLUS_MINUS)
            text = styles[results.mark(row, column)](mean) + plus_minus + deviation
            if cell.published is not None:
                text += f" [{shown_value(column, cell.published)}]"
            note = fewer_seeds(results, row, column)
            text += f" ({note})" if note else ""
            cells.append(text.strip())
        body.append(cells)
    return body


def markdown(results: Results) -> str:
    """The table in Markdown, with its legend and the missing runs."""
    header = ["scenario", *(f"{c.heading} {heading(c)}" for c in results.columns)]
    lines = [
        "| " + " | ".join(header) + " |",
        "| --- |" + " ---: |" * len(results.columns),
        *(
            "| " + " | ".join(cells) + " |"
            for cells in _body(results, "**{}**".format, "<u>{}</u>".format)
        ),
        "",
        *(f"- {line}" for line in legend(results)),
    ]
    if results.missing:
        lines += ["", f"{missing_runs(results)}:", ""]
        lines += [f"- {line}" for line in missing_lines(results)]
    return "\n".join(lines) + "\n"


def tex(results: Results) -> str:
    """The table in TeX, for the package booktabs."""
    groups: list[tuple[str, int]] = []
    for column in results.columns:
        if groups and groups[-1][0] == column.heading:
            groups[-1] = (column.heading, groups[-1][1] + 1)
        else:
            groups.append((column.heading, 1))
    arrows = {"lower": r"$\downarrow$", "higher": r"$\uparrow$"}
    tasks = [
        _escaped(name) if count == 1 else rf"\multicolumn{{{count}}}{{c}}{{{_escaped(name)}}}"
        for name, count in groups
    ]
    metrics = [
        _escaped(column.metric.title) + arrows.get(column.metric.better, "")
        for column in results.columns
    ]
    lines = [
        "% \\usepackage{booktabs}",
        *(f"% {line}" for line in [*legend(results), *missing_lines(results)]),
        rf"\begin{{tabular}}{{l{'r' * len(results.columns)}}}",
        r"\toprule",
        " & ".join(["Scenario", *tasks]) + r" \\",
        " & ".join(["", *metrics]) + r" \\",
        r"\midrule",
    ]
    body = _body(results, r"\textbf{{{}}}".format, r"\underline{{{}}}".format)
    for row, (label, *cells) in zip(results.rows, body, strict=True):
        if row.scenario == "c":
            lines.append(r"\midrule")
        shown = [cell.replace("±", r"$\pm$") for cell in cells]
        # A bracket after \\ would be its optional argument; braces are not.
        lines.append(" & ".join([_escaped(label), *shown]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    for character in "&%#_":
        text = text.replace(character, f"\\{character}")
    return text.replace("α", r"$\alpha$")


FIELDS = (
    "scenario",
    "left_out",
    "alpha",
    "task",
    "metric",
    "split",
    "mean",
    "standard_deviation",
    "seeds",
    "mark",
    "paper",
)


def csv_table(results: Results) -> str:
    """A line for each cell with a value. Values are fractions, not rounded."""
    records = []
    for row in results.rows:
        for column in results.columns:
            cell = results.cell(row, column)
            if cell.mean is None and cell.published is None:
                continue
            values = [
                NAMES[row.scenario],
                row.left_out,
                row.alpha,
                column.task,
                column.metric.name,
                column.split,
                cell.mean,
                cell.deviation,
                len(cell.values),
                results.mark(row, column),
                cell.published,
            ]
            records.append(dict(zip(FIELDS, values, strict=True)))
    return csv_text(FIELDS, records)


EFFECT_FIELDS = ("left_out", "task", "metric", "effect", "spread", "exceeds_spread")


def csv_effects(found: Sequence[Effect]) -> str:
    """A line for each effect: relative changes of the error, fractions."""
    records = []
    for effect in found:
        metric = effect.column.metric.name
        values = (
            *(effect.helper, effect.column.task, metric),
            *(effect.value, effect.spread, effect.clear),
        )
        records.append(dict(zip(EFFECT_FIELDS, values, strict=True)))
    return csv_text(EFFECT_FIELDS, records)


def terminal_table(results: Results) -> Table:
    """The means with their marks; the ten metrics of the paper fit into 80 columns."""
    table = Table(padding=(0, 1, 0, 0), pad_edge=False, box=None, header_style="")
    table.add_column("", no_wrap=True)
    for column in results.columns:
        table.add_column(f"{column.heading}\n{heading(column)}", justify="right", overflow="fold")
    styles = {"better": "bold", "worse": "underline", None: ""}
    for row in results.rows:
        cells = []
        for column in results.columns:
            mean = results.cell(row, column).mean
            empty = LEFT_OUT if row.left_out == column.task else ""
            text = empty if mean is None else shown_value(column, mean)
            cells.append(Text(text, styles[results.mark(row, column)]))
        label = NAMES[row.scenario]
        if row.left_out is not None:
            label += f" −{results.heading(row.left_out)}"
        if row.alpha is not None:
            label += f" {row.alpha:g}"
        table.add_row(label, *cells)
    return table
