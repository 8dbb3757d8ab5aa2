"""Parse the pages of the documentation into blocks and commands."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "examples").glob("*/README.md")),
    )
}
SHELL = ("", "bash")


@dataclass(frozen=True)
class Block:
    """A fenced block: page, number of its first line, language, text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command, with continued lines joined and without its comment."""

    block: Block
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    def __str__(self) -> str:
        return f"{self.block} {self.text[:60]}"


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    found, opened = [], None
    kept: list[str] = []
    for number, line in enumerate(PAGES[page].read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*(```+|~~~+)\s*(.*)$", line)
        if fence and opened is None:
            opened, kept = (number, fence[2].strip()), []
        elif fence and opened is not None:
            found.append(Block(page, *opened, "".join(f"{text}\n" for text in kept)))
            opened = None
        elif opened is not None:
            kept.append(line)
    if opened is not None:
        raise ValueError(f"{page}: unterminated block in line {opened[0]}")
    return found


def indented_code(page: str) -> list[int]:
    """Numbers of lines that start indented code, which has no language and no test."""
    found, inside, after_blank = [], False, True
    for number, line in enumerate(PAGES[page].read_text(encoding="utf-8").splitlines(), 1):
        if re.match(r"\s*(```|~~~)", line):
            inside = not inside
        elif not inside and after_blank and re.match(r"(\t| {4})\s*\S", line):
            found.append(number)
        after_blank = not line.strip()
    return found


def commands(block: Block) -> list[Command]:
    joined = block.text.replace("\\\n", " ")
    lines = [re.sub(r"(^|\s\s+)#.*$", "", line) for line in joined.splitlines()]
    return [Command(block, " ".join(line.split())) for line in lines if line.strip()]


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
