"""Hooks of `mkdocs build`: pages from the top of the repository, and links that leave `docs/`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages of the site that are files of the top folder."""

LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside `docs/`."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to pages of the site; show other files of the repository as plain names."""
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = (ROOT / source).parent
    sites = {(ROOT / file).resolve(): name for name, file in PAGES.items()}

    def target(match: re.Match[str]) -> str:
        text, path, anchor = match.group(1), match.group(2), match.group(3) or ""
        linked = (folder / path).resolve()
        if linked in sites:
            return f"[{text}]({sites[linked]}{anchor})"
        if linked.is_relative_to(ROOT / "docs"):
            return f"[{text}]({linked.relative_to(ROOT / 'docs').as_posix()}{anchor})"
        if linked.exists():
            return f"`{linked.relative_to(ROOT).as_posix()}`"
        return match.group(0)  # strict mode reports it

    return LINK.sub(target, markdown)
