"""Transcripts that a trained run predicted, as further training data (self training).

The file is the output of `s3prl-mtl predict`: a line of JSON for each audio file, with `file` and
`asr`, which has `text` and `confidence`. Paths are absolute, or relative to the folder of the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_mtl.data import Corpus, Utterance, absolute, read_lines
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


class PseudoLabelFile:
    """The file of pseudo labels of a corpus, if it has one.

    Args:
        path: of the file, or None.
        confidence: the smallest confidence of a transcript that is used, from 0 (all) to 1.

    Raises:
        UserError: there is a file, and the confidence is not such a number.
    """

    def __init__(self, path: str | os.PathLike[str] | None, confidence: float) -> None:
        self.path = None if path is None else absolute(path)
        self.confidence = confidence
        self.settings: dict[str, Any] = {}
        if self.path is None:
            return
        self.settings = {"pseudo_labels": self.path, "pseudo_confidence": confidence}
        is_number = isinstance(confidence, int | float) and not isinstance(confidence, bool)
        if not is_number or not 0 <= confidence <= 1:
            raise UserError(
                f"{confidence!r} is not a confidence.",
                where=f"{TASK}.downstream_expert.datarc.pseudo_confidence",
                fix="Set a number from 0 (take all) to 1.",
                code="invalid-value",
            )

    def problems(self, corpus: Corpus) -> list[str]:
        """The problem that the file is missing."""
        if self.path is None:
            return []
        return corpus.missing_file(self.path, "the output of `s3prl-mtl predict`", "pseudo_labels")

    def read(self, transcribed: Sequence[Utterance]) -> PseudoLabels:
        """Read the file.

        Args:
            transcribed: utterances with a transcript, whose audio files are left out.

        Raises:
            UserError: the file cannot be read, or a line is not of this form.
        """
        if self.path is None:
            return PseudoLabels([])
        used: dict[Path, Utterance] = {}
        known = {utterance.path for utterance in transcribed}
        below = empty = failed = repeated = 0
        for number, line in read_lines(self.path):
            where = f"{self.path}, line {number}"
            audio, answer = _parse(line, where)
            file = absolute(self.path.parent / os.path.expanduser(audio))
            if answer is None:
                failed += 1
            elif not answer["text"].strip():
                empty += 1
            elif self.confidence > 0 and _confidence(answer, where) < self.confidence:
                below += 1
            elif file in known or file in used:
                repeated += 1
            else:
                text = " ".join(answer["text"].upper().split())
                # Not the stem alone, which may be that of a transcribed utterance.
                used[file] = Utterance(f"pseudo:{file}", file, {"text": text}, source=where)
        return PseudoLabels(list(used.values()), below, empty, failed, repeated)

    def notes(self, transcribed: Callable[[], Sequence[Utterance]]) -> list[str]:
        """A line for the log: the numbers of lines that are used and left out."""
        if self.path is None:
            return []
        read = self.read(transcribed())
        reasons = {
            f"below the confidence {self.confidence:g}": read.below,
            "without words": read.empty,
            "with an error": read.failed,
            "already transcribed": read.repeated,
        }
        left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        used = f"{len(read.utterances)} pseudo-labelled utterances of {self.path}"
        return [f"{used}; left out: {left_out or 'none'}."]


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
