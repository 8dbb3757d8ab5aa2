"""The import graph in docs/architecture.md is that of the code."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

from tests.docs.pages import ROOT, blocks
from tests.test_boundaries import LAYERS

SCRIPT = "docs/import_graph.py"


def test_the_page_shows_the_import_graph_of_the_code():
    done = subprocess.run(
        [sys.executable, ROOT / SCRIPT], capture_output=True, text=True, check=True
    )
    (shown,) = [block for block in blocks("docs/architecture.md") if block.language == "mermaid"]
    assert done.stdout == f"```mermaid\n{shown.text}```\n", f"run: python {SCRIPT} --write"


def test_the_page_lists_every_subpackage_in_order():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    places = [
        [page.index(f"| `{name}` |") for name in names] for names in LAYERS if names != ("errors",)
    ]
    for above, below in pairwise(places):
        assert max(above) < min(below)
