"""The files of a report: the page, tables, figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.study import page
from s3prl_mtl.study.figures import Drawing

PAGE = "report.html"
FIGURES = "figures"


@dataclass
class ReportFiles:
    """Files to write: the page, tables and figures.

    Attributes:
        files: texts by name.
        drawings: figures, for the folder `figures`.
    """

    files: dict[str, str] = field(default_factory=dict)
    drawings: list[Drawing] = field(default_factory=list)

    def draw(self, drawing: Drawing, alt: str, caption: str, numbers: str = "") -> str:
        """Keep a figure, and return it as HTML."""
        self.drawings.append(drawing)
        return page.figure(drawing, alt, caption, numbers)

    def write(self, folder: Path) -> Path:
        """Write all files and return the path of the page."""
        figures = folder / FIGURES
        figures.mkdir(parents=True, exist_ok=True)
        for drawing in self.drawings:
            drawing.write(figures)
        for name, text in self.files.items():
            replace_text(folder / name, text)
        return folder / PAGE
