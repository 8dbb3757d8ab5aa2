"""Figures of reports, drawn by matplotlib: relation graphs, heat maps, curves.

A figure is a file for papers, and part of a page that follows the colours of the page: `inline`
replaces the fixed colours by CSS variables of the same names.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from s3prl_mtl.fileio.atomic import atomic_path, replace_text
from s3prl_mtl.study.relations import Relation

COLOURS = {
    "helps": "#00629b",
    "hurts": "#b54708",
    "ink": "#1c1e21",
    "muted": "#5c6066",
    "faint": "#c9ccd1",
    "paper": "#ffffff",
}
"""By the name of the CSS variable. Blue and orange differ in every form of colour blindness."""

STYLE = {
    "font.family": "sans-serif",
    "font.size": 11,
    "svg.fonttype": "none",  # text stays text: it can be selected and read aloud
    "svg.hashsalt": "s3prl-mtl",  # the same file each time
    "text.color": COLOURS["ink"],
    "axes.facecolor": "none",
    "axes.edgecolor": COLOURS["faint"],
    "axes.labelcolor": COLOURS["muted"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "text.parse_math": False,  # a $ in a name is a $
}
UNIT = 1 / 72
"""Inches of a pixel of the SVG."""
STRONGEST = 0.5
"""Opacity of the strongest colour of a heat map, so that text on it can be read."""


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: of its files, without an ending.
        svg: the file.
        png: the file, at twice the size.
    """

    name: str
    svg: str
    png: bytes

    def write(self, folder: Path) -> None:
        """Write `<name>.svg` and `<name>.png`."""
        replace_text(folder / f"{self.name}.svg", self.svg)
        with atomic_path(folder / f"{self.name}.png") as partial:
            partial.write_bytes(self.png)

    def inline(self, alt: str) -> str:
        """The figure as an element of a page, in the colours and the font of the page."""
        text = self.svg[self.svg.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", text, flags=re.S)
        # Identifiers are unique within a page.
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)
        for name, colour in COLOURS.items():
            text = text.replace(colour, f"var(--{name})")
        text = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*", _font, text)
        width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0]
        # Smaller than at nine tenths, text is hard to read: the page scrolls a wide figure.
        opening = (
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}" style="'
            f'min-width:{0.9 * float(width):.0f}px;max-width:{1.3 * float(width):.0f}px" '
            'preserveAspectRatio="xMinYMin" '
        )
        return re.sub(r"<svg [^>]*?(?=xmlns)", opening, text, count=1).strip()


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px"


def _drawn(name: str, draw: Callable[[Figure], None], width: float, height: float) -> Drawing:
    """Draw a figure of a size in pixels."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width * UNIT, height * UNIT), facecolor=COLOURS["paper"])
        draw(figure)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
    return Drawing(name, svg.getvalue(), png.getvalue())


def _blank_axes(figure: Figure, width: float, height: float) -> Axes:
    """Axes without a frame, in pixels from the upper left corner."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return axes


def relation_graph(
    name: str,
    found: Sequence[Relation],
    tasks: Mapping[str, str],
    colour: str,
    strongest: float,
    several: bool,
) -> Drawing:
    """Tasks on a circle, with an arrow from each task to those that it helps (or hurts).

    Args:
        name: of the files.
        found: the relations to draw: dashed if they are within the spread.
        tasks: names and headings, clockwise from the top.
        colour: of the arrows, a key of `COLOURS`.
        strongest: the absolute effect with the widest arrow; that of related figures.
        several: dot those of unknown spread. With a single seed all of them are solid.
    """
    size, node = 370.0, 21.0
    radius = size / 2 - node - 4

    def draw(figure: Figure) -> None:
        axes = _blank_axes(figure, size, size)
        places = {}
        for number, task in enumerate(tasks):
            angle = 2 * math.pi * number / len(tasks)
            places[task] = (
                size / 2 + radius * math.sin(angle),
                size / 2 - radius * math.cos(angle),
            )
        for relation in reversed(found):  # the strongest on top
            line: Any = {True: "-", False: (0, (4, 3)), None: (0, (1, 2)) if several else "-"}[
                relation.clear
            ]
            strength = math.sqrt(min(1.0, abs(relation.value) / strongest)) if strongest else 1.0
            arrow = FancyArrowPatch(
                places[relation.helper],
                places[relation.task],
                connectionstyle="arc3,rad=0.12",
                arrowstyle=f"-|>,head_length={3 + 4 * strength},head_width={1.6 + 2 * strength}",
                shrinkA=node,
                shrinkB=node + 1,
                linewidth=0.6 + 2.6 * strength,
                linestyle=line,
                color=COLOURS[colour],
                alpha=(0.25 + 0.75 * strength) * (1 if line == "-" else 0.6),
            )
            axes.add_patch(arrow)
        for task, (x, y) in places.items():
            axes.plot(
                [x], [y], "o", ms=2 * node, mfc=COLOURS["paper"], mec=COLOURS["faint"], mew=1.2
            )
            axes.text(x, y, tasks[task][:6], ha="center", va="center", weight="bold", size=11)

    return _drawn(name, draw, size, size)


def heat_map(
    name: str,
    matrix: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    shown: Callable[[float], str],
    limit: float,
    pale: Sequence[Sequence[bool]] | None = None,
    doubtful: Sequence[Sequence[bool]] | None = None,
) -> Drawing:
    """A matrix: positive numbers blue, negative ones orange, undefined ones without a colour.

    Args:
        name: of the files.
        matrix: of rows; None is undefined.
        rows, columns: headings; those of columns may have two lines.
        shown: the text of a number.
        limit: the absolute value with the strongest colour; larger ones have it too.
        pale: True for numbers in italics, as those within the spread.
        doubtful: True for numbers with a question mark.
    """
    cell_width, cell_height = 33.0, 25.0
    left = 14 + 7.2 * max((len(row) for row in rows), default=0)
    lines = max((column.count("\n") + 1 for column in columns), default=1)
    top = 8 + 14.0 * lines
    width, height = left + cell_width * len(columns) + 4, top + cell_height * len(rows) + 4

    def draw(figure: Figure) -> None:
        axes = _blank_axes(figure, width, height)
        for j, column in enumerate(columns):
            middle = left + (j + 0.5) * cell_width
            for number, line in enumerate(column.split("\n")):
                ink = COLOURS["muted"] if number else COLOURS["ink"]
                y = top - 7 - 13 * (column.count("\n") - number)
                axes.text(middle, y, line[:5], ha="center", size=9.5 if number else 10.5, color=ink)
        for i, row in enumerate(rows):
            y = top + i * cell_height
            axes.text(left - 8, y + cell_height / 2, row, ha="right", va="center_baseline")
            for j, value in enumerate(matrix[i]):
                x = left + j * cell_width
                defined = value is not None and math.isfinite(value)
                strength = min(1.0, abs(value or 0) / limit) if defined and limit else 0.0
                box = Rectangle(
                    (x + 1, y + 1),
                    cell_width - 2,
                    cell_height - 2,
                    facecolor=COLOURS["helps" if (value or 0) > 0 else "hurts"],
                    alpha=STRONGEST * strength,
                )
                axes.add_patch(box)
                mark = "?" if doubtful is not None and doubtful[i][j] else ""
                muted = not defined or (pale is not None and pale[i][j])
                axes.text(
                    x + cell_width / 2,
                    y + cell_height / 2,
                    shown(value) + mark if value is not None and defined else "·",
                    ha="center",
                    va="center_baseline",
                    size=10,
                    style="italic" if muted and defined else "normal",
                    color=COLOURS["muted" if not defined else "ink"],
                )

    return _drawn(name, draw, width, height)


@dataclass(frozen=True)
class Curve:
    """Values of a metric over the steps of a run.

    Attributes:
        label: in the legend; curves of one label look alike.
        steps, values: of equal length.
        style: `strong`, `plain`, `dotted`, `dashed` or `faint`.
    """

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    style: str


LINES: dict[str, dict[str, Any]] = {
    "strong": {"color": COLOURS["helps"], "linewidth": 2.2, "zorder": 4},
    "plain": {"color": COLOURS["hurts"], "linewidth": 1.6, "zorder": 3},
    "dotted": {
        "color": COLOURS["hurts"],
        "linewidth": 1.4,
        "linestyle": (0, (1, 1.5)),
        "zorder": 3,
    },
    "dashed": {"color": COLOURS["muted"], "linewidth": 1.4, "linestyle": (0, (4, 2)), "zorder": 3},
    "faint": {"color": COLOURS["faint"], "linewidth": 1.1, "zorder": 2},
}


def curves_figure(name: str, title: str, curves: Sequence[Curve], unit: str) -> Drawing:
    """Curves over steps, with a legend under them.

    Args:
        name: of the files.
        title: above the figure, such as the task and the metric.
        curves: to draw.
        unit: of the values, at the axis.
    """
    width, height = 340.0, 230.0

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((50 / width, 62 / height, 1 - 60 / width, 1 - 92 / height))
        labelled: set[str] = set()
        for curve in curves:
            label = curve.label if curve.label not in labelled else None
            labelled.add(curve.label)
            single = "o" if len(curve.steps) == 1 else ""
            axes.plot(
                curve.steps, curve.values, label=label, marker=single, ms=4, **LINES[curve.style]
            )
        axes.set_title(title, loc="left", size=11.5, weight="bold", color=COLOURS["ink"], pad=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3, labelsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_ylabel(unit, size=10)
        axes.set_xlabel("step", size=10, labelpad=2)
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="lower center",
            ncols=5,
            frameon=False,
            fontsize=10,
            handlelength=1.6,
            columnspacing=1.2,
            borderaxespad=0.1,
        )

    return _drawn(name, draw, width, height)
