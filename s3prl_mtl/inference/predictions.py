"""Call `predict` of an expert and check its answers; the expert may be of any package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.tasks.chunks import Chunk

Answer = dict[str, Any]
"""The prediction of a head for an utterance: plain JSON values by name."""


def has_predict(expert: object) -> bool:
    """Whether an expert, or the class of one, can predict for audio without labels."""
    return callable(getattr(expert, "predict", None))


def no_predict_error(task: str, expert_class: type) -> UserError:
    """The error for a task without `predict`."""
    return UserError(
        f"The expert of {task} cannot predict for audio without labels.",
        where=f"{expert_class.__module__}.{expert_class.__qualname__}",
        fix="Name other tasks, or add `predict` to its class (docs/plugins.md).",
        code="not-supported",
    )


def condition(expert: Any, waveforms: Sequence[Tensor], label: str) -> list[Tensor]:
    """The waveforms after the `condition` of an expert, such as another level or no silences.

    Args:
        expert: it may have `condition`.
        waveforms: (samples,) each.
        label: the task with its package, for errors.

    Raises:
        UserError: it failed.
    """
    if not hasattr(expert, "condition"):
        return list(waveforms)
    with _fault_of(label, "cannot condition a waveform"):
        return [expert.condition(waveform) for waveform in waveforms]


def predict(
    expert: Any, features: Sequence[Tensor], lengths_samples: Sequence[int], label: str
) -> list[Answer]:
    """The checked answers of an expert, one for each utterance.

    Args:
        expert: it has `predict`.
        features: of each utterance, as `predict` takes them.
        lengths_samples: of their waveforms.
        label: the task with its package, for errors.

    Raises:
        UserError: it failed, or its answers are not JSON objects, one for each utterance.
    """
    with _fault_of(label, "cannot predict"):
        answers = expert.predict(list(features), list(lengths_samples))
    return check_answers(answers, len(features), label)


def own_join(expert: object) -> bool:
    """Whether an expert joins chunks itself.

    A class that overrides `predict` of its base class, but not `join_chunks`, has other answers
    than those that the base class joins.
    """
    classes = type(expert).__mro__
    joins = next((i for i, c in enumerate(classes) if "join_chunks" in vars(c)), None)
    return joins is not None and not any("predict" in vars(c) for c in classes[:joins])


def chunk_outputs(
    expert: Any, features: Sequence[Tensor], lengths_samples: Sequence[int], label: str
) -> list[Any]:
    """The outputs of an expert for each chunk of a recording: `chunk_outputs`, or its answers.

    Args:
        expert: it has `predict`.
        features: of each chunk, as `predict` takes them.
        lengths_samples: of their waveforms.
        label: the task with its package, for errors.

    Raises:
        UserError: as :func:`predict`.
    """
    if not own_join(expert) or not hasattr(expert, "chunk_outputs"):
        return list(predict(expert, features, lengths_samples, label))
    with _fault_of(label, "cannot predict"):
        outputs = list(expert.chunk_outputs(list(features), list(lengths_samples)))
    if len(outputs) != len(features):
        raise _invalid(label, f"{len(outputs)} outputs for {len(features)} chunks", "chunk_outputs")
    return outputs


def align_chunk(expert: Any, previous: Chunk, chunk: Chunk, label: str) -> Chunk:
    """A chunk whose output the expert made comparable with that of the previous chunk.

    Raises:
        UserError: it failed.
    """
    if not own_join(expert) or not hasattr(expert, "align_chunk"):
        return chunk
    with _fault_of(label, "cannot align chunks"):
        return replace(chunk, output=expert.align_chunk(previous, chunk))


def join_chunks(expert: Any, chunks: Sequence[Chunk], label: str) -> Answer:
    """The prediction for a recording, from its chunks.

    By default `chunks`, a list of the predictions with `start` and `end` in seconds; of a single
    chunk, its prediction.

    Raises:
        UserError: as :func:`predict`.
    """
    if own_join(expert):
        with _fault_of(label, "cannot join chunks"):
            return _plain(expert.join_chunks(list(chunks)), label, "join_chunks")
    if len(chunks) == 1:
        return dict(chunks[0].output)
    return {"chunks": [{"start": c.start, "end": c.end, **c.output} for c in chunks]}


def check_answers(answers: object, utterances: int, label: str) -> list[Answer]:
    """Copies of the return value of `predict`, if it is valid.

    Args:
        answers: the return value.
        utterances: their number.
        label: the task with its package, for errors.

    Raises:
        UserError: it is not a list of JSON objects, one for each utterance.
    """
    if not isinstance(answers, list | tuple):
        raise _invalid(label, f"a {type(answers).__name__} instead of a list")
    if len(answers) != utterances:
        raise _invalid(label, f"{len(answers)} answers for {utterances} utterances")
    return [_plain(answer, label) for answer in answers]


def task_label(task: str, package: str | None) -> str:
    """A task with its package, for errors."""
    return f"the task {task!r}" + (f" of package {package}" if package is not None else "")


def _plain(answer: object, label: str, method: str = "predict") -> Answer:
    if not isinstance(answer, dict):
        raise _invalid(label, f"a {type(answer).__name__} instead of a dict", method)
    try:
        plain: Answer = json.loads(json.dumps(answer, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as cause:
        raise _invalid(label, f"a value that is not JSON ({cause})", method) from cause
    return plain


def _invalid(label: str, what: str, method: str = "predict") -> UserError:
    return UserError(
        f"`{method}` returned {what.rstrip('.')}.",
        where=label,
        fix="Return a dict of plain JSON with finite numbers for each utterance; check-task "
        "tests it.",
        code="expert-failed",
    )


@contextmanager
def _fault_of(label: str, what: str) -> Iterator[None]:
    """Attribute an error to the expert; a `UserError` passes."""
    try:
        yield
    except UserError:
        raise
    except Exception as cause:
        reason = " ".join(str(cause).split()).rstrip(".")
        raise UserError(
            f"The expert {what}: {type(cause).__name__}" + (f": {reason}." if reason else "."),
            where=label,
            fix="Leave the task out, or report it to its package. Run with --verbose for the "
            "traceback.",
            code="expert-failed",
        ) from cause
