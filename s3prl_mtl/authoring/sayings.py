"""What went wrong in the code of a task, in one line."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

import s3prl_mtl

_OTHERS = tuple(str(Path(str(module.__file__)).parent) + "/" for module in (torch, s3prl_mtl))


def said_by(error: BaseException) -> str:
    """What an error says, with its kind and with the line of the task's code that it is from."""
    text = " ".join(str(error).split()).rstrip(".")
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_OTHERS, "<"))]
    if not own:
        return said
    path = Path(own[-1].filename)
    return f"{said} ({path.parent.name}/{path.name}, line {own[-1].lineno}, in {own[-1].name})"
