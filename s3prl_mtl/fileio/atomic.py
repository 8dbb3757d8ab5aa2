"""Text files that are whole at every moment."""

from __future__ import annotations

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file so that the path holds the old text or the new one, never a part of it.

    Raises:
        OSError: it cannot be written; the old text is intact.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
