"""Print the import graph of the sub-packages of s3prl_mtl as a Mermaid block.

    python docs/import_graph.py            print the block
    python docs/import_graph.py --write    replace the block in docs/architecture.md

An arrow means "imports from". Arrows that follow from others are omitted: with a -> b and b -> c,
a -> c is not shown.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
PACKAGE = "s3prl_mtl"
PAGE = DOCS / "architecture.md"
BLOCK = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)

Graph = dict[str, set[str]]


def import_graph(package: Path) -> Graph:
    """The sub-packages that each sub-package imports from, anywhere in its files."""
    units = {path.stem for path in package.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    units |= {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    graph: Graph = {unit: set() for unit in units}
    for unit in units:
        folder = package / unit
        files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
        for file in files:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                parts = (name.split(".") for name in names)
                graph[unit] |= {p[1] for p in parts if p[0] == package.name and p[1:2]} & units
        graph[unit].discard(unit)
    return graph


def reachable(graph: Graph, start: str) -> set[str]:
    """All sub-packages below one."""
    found: set[str] = set()
    pending = [start]
    while pending:
        new = graph[pending.pop()] - found
        found |= new
        pending += new
    return found


def reduced(graph: Graph) -> Graph:
    """The graph without arrows that follow from others (transitive reduction)."""
    below = {unit: reachable(graph, unit) for unit in graph}
    return {
        unit: targets - set().union(*(below[target] for target in targets))
        for unit, targets in graph.items()
    }


def mermaid(graph: Graph) -> str:
    """A fenced Mermaid block with the arrows in alphabetical order."""
    arrows = [f"    {a} --> {b}" for a in sorted(graph) for b in sorted(graph[a])]
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```", ""])


def main() -> None:
    block = mermaid(reduced(import_graph(DOCS.parent / PACKAGE)))
    if sys.argv[1:] == ["--write"]:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(BLOCK.sub(lambda _: block, page), encoding="utf-8")
    else:
        print(block, end="")


if __name__ == "__main__":
    main()
