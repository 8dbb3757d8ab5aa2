"""What went wrong in the code of a task, in one line."""

from __future__ import annotations

from pathlib import Path

import torch

import s3prl_mtl
from s3prl_mtl.errors import error_summary
from s3prl_mtl.registry.fault import frames_of

_OTHERS = tuple(str(Path(str(module.__file__)).parent) + "/" for module in (torch, s3prl_mtl))


def said_by(error: BaseException) -> str:
    """What an error says, with its kind and with the line of the task's code that it is from."""
    said = error_summary(error)
    own = [frame for frame in frames_of(error) if not frame.path.startswith((*_OTHERS, "<"))]
    return f"{said} ({own[-1]})" if own else said
