"""Times of words as NIST's conversation time marks (CTM)."""

from __future__ import annotations

from typing import Any, TextIO

from s3prl_mtl.inference.rttm import joined

SUFFIX = ".ctm"


def write_ctm(file: TextIO, recording: str, answer: dict[str, Any]) -> None:
    """Write the timed units of a recording as lines: `recording 1 start duration unit`.

    Args:
        file: open for writing.
        recording: its name.
        answer: of a transcription head; its `times` have `start` and `end` (seconds) and the unit.
    """
    for entry in answer["times"]:
        (unit,) = (value for key, value in entry.items() if key not in ("start", "end"))
        start, end = entry["start"], entry["end"]
        file.write(f"{recording} 1 {start:.3f} {end - start:.3f} {joined(unit)}\n")
