"""Transcripts that a trained run predicted, as further training data (self training).

The file is the output of `s3prl-mtl predict`: a line of JSON for each audio file, with `file` and
`asr`, which has `text` and `confidence`. Paths are absolute, or relative to the folder of the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_mtl.data import Utterance, absolute, read_lines
from s3prl_mtl.errors import UserError

TASK = "asr"


@dataclass(frozen=True)
class PseudoLabels:
    """The lines of a file that are used, and the numbers of those that are not.

    Args:
        utterances: with the label `text`, in upper case; in the order of the file.
        below: lines with a lower confidence.
        empty: lines without a word.
        failed: lines with an error in place of a transcript.
        repeated: lines about a file that has a transcript already.
    """

    utterances: list[Utterance]
    below: int = 0
    empty: int = 0
    failed: int = 0
    repeated: int = 0

    def summary(self, path: Path, confidence: float) -> str:
        """A line for the log."""
        reasons = {
            f"below the confidence {confidence:g}": self.below,
            "without words": self.empty,
            "with an error": self.failed,
            "already transcribed": self.repeated,
        }
        left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        used = f"{len(self.utterances)} pseudo-labelled utterances of {path}"
        return f"{used}; left out: {left_out or 'none'}."


def read_pseudo_labels(path: Path, confidence: float, known: Iterable[Path]) -> PseudoLabels:
    """Read the utterances of at least this confidence.

    Args:
        path: the file.
        confidence: the threshold, from 0 to 1; 0 takes all.
        known: audio files with a transcript, which are left out.

    Raises:
        UserError: the file cannot be read, or a line is not of this form.
    """
    used: dict[Path, Utterance] = {}
    known = set(known)
    below = empty = failed = repeated = 0
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        audio, answer = _parse(line, where)
        file = absolute(path.parent / os.path.expanduser(audio))
        if answer is None:
            failed += 1
        elif not answer["text"].strip():
            empty += 1
        elif confidence > 0 and _confidence(answer, where) < confidence:
            below += 1
        elif file in known or file in used:
            repeated += 1
        else:
            text = " ".join(answer["text"].upper().split())
            # Not the stem alone, which may be that of a transcribed utterance.
            used[file] = Utterance(f"pseudo:{file}", file, {"text": text}, source=where)
    return PseudoLabels(list(used.values()), below, empty, failed, repeated)


def _parse(line: str, where: str) -> tuple[str, dict[str, Any] | None]:
    """The audio file and the answer of a line; None where the prediction failed."""
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    if isinstance(content, dict) and isinstance(content.get("file"), str):
        answer = content.get(TASK)
        if isinstance(answer, dict) and isinstance(answer.get("text"), str):
            return content["file"], answer
        if "error" in content:
            return content["file"], None
    raise UserError(
        f'The line is not of the form {{"file": ..., "{TASK}": {{"text": ...}}}}.',
        where=where,
        fix=f"Write it with `s3prl-mtl predict RUN --task {TASK} AUDIO...`.",
        code="corpus-malformed",
    )


def _confidence(answer: dict[str, Any], where: str) -> float:
    value = answer.get("confidence")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise UserError(
        "The transcript has no confidence.",
        where=where,
        fix=f"Predict it again, or set {TASK}.downstream_expert.datarc.pseudo_confidence to 0.",
        code="corpus-malformed",
    )
