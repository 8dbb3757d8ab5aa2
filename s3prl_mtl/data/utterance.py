"""One utterance of a corpus: location of its audio, and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Utterance:
    """A segment of an audio file with its labels, as listed in the metadata of a corpus.

    Args:
        id: unique within its split.
        path: the audio file. It may be missing: the scan of the split counts it among the
            unreadable files.
        labels: labels of the task, plain JSON values.
        start_seconds: start of the segment in the file.
        duration_seconds: duration of the segment; None: to the end of the file.
        source: the list, and its line, that asks for the file, for messages about a file that
            cannot be used; None if the file itself is what makes it an utterance.
    """

    id: str
    path: Path
    labels: Mapping[str, Any]
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    source: str | None = None
