"""Clauses about utterances that are padded to the longest one of their batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3prl_mtl.authoring.contract import Doubtful, NotApplicable, Violated, clause
from s3prl_mtl.authoring.expert_checks import finite_loss
from s3prl_mtl.authoring.harness import TaskHarness, frame_count, states_of
from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.data.randomness import RandomStream
from s3prl_mtl.errors import UserError
from s3prl_mtl.training.microbatch import halves
from s3prl_mtl.upstreams import MaskedUtterance

SAME_LENGTH = "the utterances of every evaluated split have the same length."

DRAWS = 8
"""Random features of the pair of utterances, for each of which losses are compared."""
TOLERANCE = 1e-4
"""Relative: float32 sums in another order."""
SUM_TOLERANCE = 0.05


@dataclass(frozen=True)
class Pair:
    """A short and a longer utterance of an evaluated split, with random features.

    Args:
        split: of both.
        single: a batch of each utterance alone.
        both: one batch of the two.
        features: DRAWS times the inputs of the two, with random features.
        shortened: one was cut, because all are of the same length. Its labels may not fit.
    """

    split: str
    single: Sequence[Batch]
    both: Batch
    features: list[list[Any]]
    shortened: bool

    @property
    def frames(self) -> str:
        short, long = (states_of(entry).shape[-2] for entry in self.features[0])
        return f"{short} and {long} frames"


@clause(
    19,
    "padding",
    "Padding has no effect in evaluation: an utterance has the same loss and the same prediction "
    "alone and beside a longer one.",
    needs=(8,),
)
def ignores_padding(harness: TaskHarness) -> str:
    expert = harness.build()
    expert.eval()
    pair = _pair(harness)
    _, error = _fit_losses(harness)
    if error > TOLERANCE:
        raise Violated(
            f"{pair.split}: the loss of two utterances ({pair.frames}) is not composed of their "
            f"losses alone; it differs by {error:.2g} of its value. Leave the frames of the "
            "padding out: `pad_features` returns the number of frames of each utterance."
        )
    compared = "losses"
    if hasattr(expert, "predict"):
        try:
            _compare_predictions(expert, pair)
            compared = "losses and predictions"
        except UserError:
            pass  # It refuses in general, which clause 18 reports.
    return f"the same {compared} of {pair.frames}."


def _compare_predictions(expert: Any, pair: Pair) -> None:
    lengths = [len(wav) for wav in pair.both.wavs]
    for features in pair.features:
        with torch.no_grad():
            together = expert.predict(features, lengths)
            alone = [
                answer
                for feature, length in zip(features, lengths, strict=True)
                for answer in expert.predict([feature], [length])
            ]
        if not _same(together, alone):
            raise Violated(
                f"{pair.split}: `predict` gives other answers for two utterances ({pair.frames}) "
                "than for each of them alone. Leave the frames of the padding out: `pad_features` "
                "returns the number of frames of each utterance."
            )


def _same(one: Any, other: Any) -> bool:
    """Whether two answers are equal up to rounding."""
    if isinstance(one, float) and isinstance(other, float):
        # Clause 18 reports NaN.
        return str(one) == str(other) or math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


@clause(
    20,
    "scale of the loss",
    "The loss of a batch is a mean over its utterances, not a sum.",
    needs=(8, 19),
)
def averages_losses(harness: TaskHarness) -> str:
    weights, _ = _fit_losses(harness)
    if abs(sum(weights) - len(weights)) < SUM_TOLERANCE:
        raise Doubtful(
            "it is a sum: the learning rate then depends on the batch size, and beside other tasks "
            "this one counts more with larger batches. Divide it by the number of utterances."
        )
    return f"the losses of two utterances have weights {weights[0]:.2g} and {weights[1]:.2g}."


@lru_cache(maxsize=1)
def _fit_losses(harness: TaskHarness) -> tuple[list[float], float]:
    """Fit the loss of a batch of two as a weighted sum of the losses of each alone.

    The weights may depend on lengths and labels, as in a mean over frames or symbols, so they are
    the same for all features. If padding enters the loss, no weights fit.

    Returns:
        The weights, and the largest error relative to the loss.
    """
    expert = harness.build()
    expert.eval()
    pair = _pair(harness)

    def measure(batch: Batch, features: list[Any]) -> float:
        with torch.no_grad(), RandomStream(harness.seed).active():
            loss = harness.loss(expert, pair.split, batch, inputs=features)
        return finite_loss(loss, pair.split)

    try:
        together = np.array([measure(pair.both, features) for features in pair.features])
        alone = np.array(
            [
                [measure(batch, [x]) for batch, x in zip(pair.single, features, strict=True)]
                for features in pair.features
            ]
        )
    except Exception as cause:
        if not pair.shortened:
            raise
        raise NotApplicable(SAME_LENGTH) from cause
    weights = np.linalg.lstsq(alone, together, rcond=None)[0]
    largest = float(np.abs(together).max())
    error = float(np.abs(alone @ weights - together).max()) / largest if largest else 0.0
    return weights.tolist(), error


@lru_cache(maxsize=1)
def _pair(harness: TaskHarness) -> Pair:
    """The first two utterances of different lengths of an evaluated split.

    If all have the same length, a part of the first one stands for a shorter one.

    Raises:
        NotApplicable: batches cannot be divided into utterances.
    """
    expert = harness.build()
    task = harness.task(expert)

    def pair(split: str, *utterances: Batch, shortened: bool) -> Pair:
        with torch.no_grad():
            like = [harness.inputs(expert, split, batch)[0] for batch in utterances]
        draws = torch.Generator().manual_seed(0)
        features = [[_random_like(entry, draws) for entry in like] for _ in range(DRAWS)]
        return Pair(split, utterances, _joined(*utterances), features, shortened)

    whole: tuple[str, Batch] | None = None
    for split in dict.fromkeys([*task.dev_splits, *task.test_splits]):
        singles = _singles(harness, expert, split)
        first = next(singles, None)
        for other in singles:
            if first is not None and _frames(other) != _frames(first):
                short, long = sorted((first, other), key=_frames)
                return pair(split, short, long, shortened=False)
        if whole is None and first is not None:
            whole = split, first
    if whole is None:
        raise NotApplicable("its batches cannot be divided: `others` has no entry per utterance.")
    split, long = whole
    part = long.wavs[0][: len(long.wavs[0]) * 2 // 3]
    short = Batch(long.task, long.number, [part], long.others)
    return pair(split, short, long, shortened=True)


def _random_like(entry: Any, draws: torch.Generator) -> Any:
    """An entry of an expert's input with random states."""
    random = torch.randn(states_of(entry).shape, generator=draws)
    return replace(entry, states=random) if isinstance(entry, MaskedUtterance) else random


def _frames(batch: Batch) -> int:
    return frame_count(len(batch.wavs[0]))


def _singles(harness: TaskHarness, expert: Any, split: str) -> Iterator[Batch]:
    """Batches of one utterance of a split."""
    for batch in harness.limited(harness.reader(expert, split, training=False), False):
        waiting = [batch]
        while waiting:
            parts = halves(waiting.pop())
            if len(parts) == 2:
                waiting += reversed(parts)
            elif parts[0].utterances == 1:
                yield parts[0]


def _joined(one: Batch, other: Batch) -> Batch:
    others = [_concatenated(*columns) for columns in zip(one.others, other.others, strict=True)]
    return Batch(one.task, one.number, [*one.wavs, *other.wavs], others)


def _concatenated(one: Any, other: Any) -> Any:
    if one is None:
        return None
    if isinstance(one, Tensor):
        return torch.cat([one, other])
    return np.concatenate([one, other]) if isinstance(one, np.ndarray) else [*one, *other]
