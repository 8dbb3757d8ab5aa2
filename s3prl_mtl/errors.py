"""Mistakes of the user, as opposed to failures of the program."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

__all__ = [
    "CODES",
    "RankLost",
    "SharedMistake",
    "UserError",
    "error_summary",
    "nearest",
    "require_packages",
]

CODES = {
    "ambiguous-name": "A name that fits several tasks, packages or files.",
    "audio-rate": "Audio or an encoder of another sample rate than 16 kHz.",
    "audio-too-long": "More samples than the encoder takes.",
    "audio-too-short": "Fewer samples than one frame of the encoder.",
    "audio-unreadable": "Audio that cannot be decoded, or is not audio.",
    "checkpoint-format": "A file that is not a checkpoint of the expected kind or version.",
    "checkpoint-incomplete": "A checkpoint that lacks a part which is needed here.",
    "checkpoint-mismatch": "Weights or settings in a checkpoint that do not fit this run.",
    "checkpoint-missing": "No checkpoint where one was named.",
    "code-untrusted": "Code of a repository that may not be executed as asked.",
    "conflicting-options": "Flags or settings that exclude each other.",
    "corpus-duplicates": "Utterances that a split has more than once.",
    "corpus-empty": "A split without a usable utterance.",
    "corpus-incomplete": "Utterances, classes or side files that a corpus lacks.",
    "corpus-inconsistent": "Metadata files of a corpus that contradict each other or the audio.",
    "corpus-malformed": "A line or table of a corpus that does not have its format.",
    "corpus-overlap": "Utterances or speakers that are in two splits.",
    "corpus-unset": "No data folder for the corpus of a task.",
    "device-unavailable": "A device, or a backend of torch.distributed, that cannot be used.",
    "download-failed": "A file that could not be downloaded, or not completely.",
    "duplicate-name": "A name that is taken.",
    "expert-failed": "Code of another package's expert raised an error.",
    "expert-invalid": "The class of an expert that does not keep the contract.",
    "file-exists": "Something is already where a file or folder would be written.",
    "file-malformed": "A file that does not have its format (YAML, JSON, text encoding).",
    "file-missing": "A file or folder that does not exist.",
    "file-unreadable": "A file or folder that exists and cannot be read.",
    "file-unwritable": "A file or folder that cannot be written.",
    "folder-in-use": "Another process works in the folder of a run.",
    "folder-not-shared": "The folder of a run is not the same on all machines.",
    "hub-refused": "A repository of Hugging Face that cannot be reached or written.",
    "invalid-input": "Any other mistake; the default for errors of other packages.",
    "invalid-name": "A name that cannot be used for a task or a package.",
    "invalid-settings": "Settings of a checkpoint or an encoder that make no sense together.",
    "invalid-value": "A value outside the allowed range or choices, or of the wrong form.",
    "label-unknown": "A label, symbol or speaker that the label space does not contain.",
    "launch-invalid": "Processes that were started, or have to meet, in a way that cannot work.",
    "missing-option": "A flag, setting or argument that is needed and absent.",
    "missing-package": "A Python package or program that is not installed.",
    "non-finite": "Weights that are not finite; losses or gradients that stay so.",
    "not-supported": "A request outside what this version supports.",
    "out-of-memory": "A step that does not fit into the memory of a GPU in any division.",
    "plugin-broken": "A plugin that cannot be imported or is of the wrong kind.",
    "ranks-differ": "Ranks that hold different weights.",
    "resume-conflict": "A change that a run cannot be resumed with.",
    "run-failed": "A training in a process of its own that failed or was stopped.",
    "several": "Several mistakes, reported together.",
    "targets-too-long": "Targets of CTC that are longer than the frames of their audio.",
    "torch-file-refused": "A file of torch.save that would execute code, or is damaged.",
    "tracker-failed": "A program that shows numbers of runs, or its service, refuses to work.",
    "undefined-metric": "A metric that its inputs leave undefined.",
    "unknown-key": "A setting, option or flag that does not exist.",
    "unknown-name": "A name of a task, split, upstream, head or format that does not exist.",
    "upstream-failed": "An upstream that cannot be loaded or cannot encode a waveform.",
    "worker-died": "Loader workers that die repeatedly, or a process of `predict` that died.",
    "wrong-type": "A value of the wrong type.",
}
"""Every code of a `UserError` of this package, with its meaning."""


class UserError(Exception):
    """A mistake that the user can correct: a path, a name, a setting, a file.

    The command line prints it as one paragraph, without a traceback, and exits with code 2.

    Args:
        what: what is wrong, a full sentence.
        where: the file, key or flag that holds it.
        fix: what would be right.
        code: one of `CODES`; stable, for programs and tests. `--verbose` shows it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        fix: str | None = None,
        code: str = "invalid-input",
    ) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        self.code = code
        parts = [what.rstrip()]
        if where:
            parts.append(f"Where: {where}.")
        if fix:
            parts.append(f"Fix: {fix.rstrip()}")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader worker sends it pickled; its arguments are not the text that it shows.
        return _rebuild, (type(self), str(self), self.__dict__)


class SharedMistake(UserError):
    """A mistake that every rank knows of: only one of them shows it."""


class RankLost(RuntimeError):
    """Another process of the run is gone or hangs, so this one cannot continue.

    Args:
        text: names the other process.
        spoken_for: another rank that is alive shows the error; this one need not.
    """

    def __init__(self, text: str, spoken_for: bool = False) -> None:
        super().__init__(text)
        self.spoken_for = spoken_for


def _rebuild(kind: type[UserError], text: str, attributes: dict[str, Any]) -> UserError:
    error = kind.__new__(kind, text)
    error.args = (text,)
    error.__dict__.update(attributes)
    return error


_SHORT_LIST = 40


def nearest(name: str, known: list[str], limit: int = 3) -> str:
    """A hint with the known names nearest to a misspelt one, or all names of a short list."""
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, known, n=limit, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(word) for word in close) + "?"
    if len(known) > _SHORT_LIST:
        return f"none of the {len(known)} known names is similar."
    return "known names: " + (", ".join(sorted(known)) or "none") + "."


def require_packages(names: Sequence[str], where: str, extra: str) -> None:
    """Check that packages are installed, without importing them.

    Args:
        names: modules.
        where: the flag that needs them, for the error.
        extra: the extra of this package that installs them.

    Raises:
        UserError: some are not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.",
            where=where,
            fix=f"Install with `pip install 's3prl-mtl[{extra}]'`.",
            code="missing-package",
        )


FROM_WORKER = re.compile(r"Caught \w+ in .*?\n", re.DOTALL)
"""Begins the message of an error that a loader worker sent on, with its traceback, as text."""


def error_summary(error: BaseException, limit: int = 300) -> str:
    """The type and message of any error on one line; of a loader worker's, the original ones."""
    text = str(error).strip()
    if "weights_only" in text:
        # torch advises to execute what is in the file.
        text = "torch refused a file with objects other than weights"
    if FROM_WORKER.match(text):
        text = text.splitlines()[-1]
    else:
        text = ": ".join(filter(None, (type(error).__name__, " ".join(text.split()))))
    text = text.rstrip(".")
    return text if len(text) <= limit else text[:limit] + "..."
