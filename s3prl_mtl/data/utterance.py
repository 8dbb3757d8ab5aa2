"""One utterance of a corpus: where its audio lies and what its task says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Utterance:
    """A stretch of an audio file with its labels, as read from a corpus's side files.

    Args:
        id: unique within its split.
        path: the audio file. It need not exist: a file that a side file names and the folder
            lacks is counted with the unreadable ones when the split is scanned.
        labels: what its task says about it; plain JSON values.
        start_seconds: where it begins in the file.
        duration_seconds: how long it is; None means to the end of the file.
    """

    id: str
    path: Path
    labels: Mapping[str, Any]
    start_seconds: float = 0.0
    duration_seconds: float | None = None
