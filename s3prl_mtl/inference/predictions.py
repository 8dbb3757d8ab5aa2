"""A head is asked, and what it says is checked: it may be anybody's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from s3prl_mtl.errors import UserError

Answer = dict[str, Any]
"""What a head says of an utterance: plain JSON values by name."""


def gives_answers(expert: object) -> bool:
    """Whether an expert, or the class of one, has `predict`."""
    return callable(getattr(expert, "predict", None))


def no_answers(task: str, expert_class: type) -> UserError:
    """The error that a task without `predict` is asked."""
    return UserError(
        f"The expert of {task} gives no answers for audio without labels.",
        where=f"{expert_class.__module__}.{expert_class.__qualname__}",
        fix="Its class has to define `predict` (see docs/plugins.md).",
    )


def conditioned(expert: Any, waveforms: Sequence[Tensor], whose: str) -> list[Tensor]:
    """The waveforms as a head wants them: louder, softer, without silences, or as they are.

    Args:
        expert: it may have `condition`.
        waveforms: (samples,) each.
        whose: the task with its package, for errors.

    Raises:
        UserError: it failed.
    """
    if not hasattr(expert, "condition"):
        return list(waveforms)
    with _blamed(whose, "cannot condition a waveform"):
        return [expert.condition(waveform) for waveform in waveforms]


def ask(
    expert: Any, features: Sequence[Tensor], lengths_samples: Sequence[int], whose: str
) -> list[Answer]:
    """What a head says of utterances: for each of them plain JSON, a copy of its own.

    Args:
        expert: it has `predict`.
        features: of each utterance, as `predict` takes them.
        lengths_samples: of their waveforms.
        whose: the task with its package, for errors.

    Raises:
        UserError: it failed, or what it says is no JSON object for each utterance.
    """
    with _blamed(whose, "cannot answer"):
        said = expert.predict(list(features), list(lengths_samples))
    return accepted(said, len(features), whose)


def accepted(said: object, utterances: int, whose: str) -> list[Answer]:
    """What `predict` gave, if it is what it should be.

    Args:
        said: by a head.
        utterances: how many it was asked about.
        whose: the task with its package, for errors.

    Returns:
        for each utterance plain JSON, a copy of its own.

    Raises:
        UserError: it is no JSON object for each utterance.
    """
    if not isinstance(said, list | tuple):
        raise _refused(whose, f"a {type(said).__name__} in place of a list of answers")
    if len(said) != utterances:
        raise _refused(whose, f"{len(said)} answers for {utterances} utterances")
    return [_plain(answer, whose) for answer in said]


def named(task: str, package: str | None) -> str:
    """A task with whose it is, for errors."""
    return f"the task {task!r}" + (f" of package {package}" if package is not None else "")


def _plain(answer: object, whose: str) -> Answer:
    if not isinstance(answer, dict):
        raise _refused(whose, f"a {type(answer).__name__} in place of a dict")
    try:
        plain: Answer = json.loads(json.dumps(answer, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as cause:
        raise _refused(whose, f"what is no JSON: {cause}") from cause
    return plain


def _refused(whose: str, what: str) -> UserError:
    return UserError(
        f"What {whose} says cannot be taken: it gave {what.rstrip('.')}.",
        where="its `predict`",
        fix="`predict` gives a dict of plain JSON, of finite numbers, for each utterance: "
        "check-task tries it out.",
    )


@contextmanager
def _blamed(whose: str, what: str) -> Iterator[None]:
    """Say whose code it was that failed. What it calls a mistake of the user is one."""
    try:
        yield
    except UserError:
        raise
    except Exception as cause:
        reason = " ".join(str(cause).split()).rstrip(".")
        raise UserError(
            f"{whose[0].upper()}{whose[1:]} {what}: {type(cause).__name__}"
            + (f": {reason}." if reason else "."),
            fix="Leave the task out, or have it mended; --verbose shows where it failed.",
        ) from cause
