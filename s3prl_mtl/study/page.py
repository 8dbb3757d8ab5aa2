"""The HTML of a report: one file without scripts, and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from s3prl_mtl.study.figures import Drawing


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: its identifier, for links.
        title: its heading.
        body: HTML.
    """

    anchor: str
    title: str
    body: str


def page(title: str, summary: Iterable[str], sections: Sequence[Section]) -> str:
    """A whole page.

    Args:
        title: of the page.
        summary: paragraphs of plain text under the title.
        sections: in order; the page lists them at its head.
    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    parts = "\n".join(
        f'<section id="{s.anchor}" aria-labelledby="{s.anchor}-title">\n'
        f'<h2 id="{s.anchor}-title">{escape(s.title)}</h2>\n{s.body}\n</section>'
        for s in sections
    )
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # An icon without content: browsers ask for one otherwise.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n{paragraphs(summary)}\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n'
        f"<main>\n{parts}\n</main>\n</body>\n</html>\n"
    )


def paragraphs(texts: Iterable[str]) -> str:
    return "\n".join(f"<p>{escape(text)}</p>" for text in texts)


def bullets(texts: Iterable[str]) -> str:
    """A list; empty without texts."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """A table of plain text, scrolled sideways where the page is narrower.

    Args:
        header: of the columns.
        rows: the first cell of each is its heading.
        label: the name of the table for screen readers.
    """
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    inner = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return scrolled(f"<table>\n{inner}\n</table>", label)


def scrolled(content: str, label: str) -> str:
    """A region that can be scrolled sideways, also by the keyboard."""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"{content}</div>"
    )


def notice(text: str, more: str = "") -> str:
    """A highlighted paragraph.

    Args:
        text: plain text.
        more: HTML after it.
    """
    return f'<div class="notice"><p>{escape(text)}</p>{more}</div>'


def details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"


def figure(drawing: Drawing, alt: str, caption: str, numbers: str = "") -> str:
    """A figure with its caption, and the table of its numbers.

    Args:
        drawing: the figure.
        alt: what it shows, for those who do not see it.
        caption: plain text.
        numbers: HTML.
    """
    shown = details("Numbers", numbers) if numbers else ""
    return (
        f'<figure id="figure-{drawing.name}">\n{scrolled(drawing.inline(alt), caption)}\n'
        f"<figcaption>{escape(caption)}</figcaption>\n{shown}\n</figure>"
    )


def side_by_side(parts: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(parts)}</div>'


def definitions(entries: Mapping[str, str], label: str) -> str:
    """Names with values, in two columns."""
    return table(["name", "value"], [[name, value] for name, value in entries.items()], label)
