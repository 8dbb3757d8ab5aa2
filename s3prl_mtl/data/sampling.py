"""Division of an epoch into batches and shares."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch

from s3prl_mtl.errors import UserError

Draw = tuple[int, int]
"""(position in the epoch, index of the utterance)."""

_MAXIMUM_BUCKETS = 20


def derived_seed(*parts: object) -> int:
    """A 63-bit seed: a pure function of its parts, equal on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def inverse_class_weights(labels: Sequence[str]) -> list[float]:
    """Sampling weights that make every class equally likely, as in SUPERB's keyword spotting.

    Args:
        labels: the class of each utterance.

    Returns:
        `len(labels) / (number of utterances of the class)` for each utterance.
    """
    counts = Counter(labels)
    return [len(labels) / counts[label] for label in labels]


def plan_batches(
    durations_seconds: Sequence[float],
    *,
    batch_size: int,
    shuffle: bool,
    epoch: int = 0,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    bucketed: bool = False,
    sliding: bool = False,
    shares: Sequence[int] = (0,),
    num_shares: int = 1,
) -> list[list[Draw]]:
    """The batches of some shares of an epoch: a pure function of the arguments.

    Training (`shuffle`): every utterance once over all shares, in random order, with equally many
    batches in every share. If batches do not divide evenly, the utterances of the last ones are
    redistributed in smaller batches, one per share; if fewer utterances than shares remain, they
    are dropped from this epoch. Several shares are interleaved: the first batch of each, in the
    order of `shares`, then the second of each, and so on.

    Evaluation (not `shuffle`): every utterance exactly once over all shares, in the given order;
    batch i belongs to share i % num_shares, so that shares may differ by one batch. (lhotse's
    samplers pad shares with repeated utterances, which would change a metric.)

    Args:
        durations_seconds: duration of each utterance.
        batch_size: utterances per batch.
        shuffle: training if true, otherwise evaluation.
        epoch: number of the epoch; changes the order.
        seed: changes the order.
        weights: relative probabilities; draw as many utterances as there are, with replacement,
            instead of each one once.
        bucketed: group utterances of similar duration.
        sliding: a training batch for each utterance, with those that follow it in the order of
            falling duration (the last batches are equal), in place of `bucketed`: an epoch has an
            utterance about `batch_size` times, as the multi-task branch reads `pr` and `sf`.
        shares: shares to return, from 0 to num_shares - 1, without repetition.
        num_shares: number of equal parts of the epoch.

    Raises:
        UserError: a setting is out of range, or there are fewer training utterances than shares.
    """
    if batch_size < 1:
        raise UserError(
            f"The batch size is {batch_size}.",
            where="batch_size",
            fix="Set 1 or more.",
            code="invalid-value",
        )
    if weights is not None and len(weights) != len(durations_seconds):
        raise ValueError(f"{len(weights)} weights for {len(durations_seconds)} utterances")
    generator = torch.Generator().manual_seed(derived_seed("order", seed, epoch))
    if weights is not None:
        chances = torch.as_tensor(weights, dtype=torch.float64)
        drawn = torch.multinomial(chances, len(chances), replacement=True, generator=generator)
        indices = drawn.tolist()
    elif shuffle:
        indices = torch.randperm(len(durations_seconds), generator=generator).tolist()
    else:
        indices = list(range(len(durations_seconds)))

    sliding = sliding and shuffle
    step = batch_size
    if sliding:
        indices = sorted(range(len(indices)), key=lambda index: -durations_seconds[index])
        last = max(0, len(indices) - batch_size)
        starts = [min(start, last) for start in range(len(indices))]
        indices = [i for start in starts for i in indices[start : start + batch_size]]
        step = min(batch_size, len(durations_seconds))
    elif bucketed:
        indices = _by_duration(indices, durations_seconds, batch_size, exact=not shuffle)
    draws = list(enumerate(indices))
    batches = [draws[start : start + step] for start in range(0, len(draws), step)]
    if shuffle:
        if bucketed or sliding:
            order = torch.randperm(len(batches), generator=generator).tolist()
            batches = [batches[i] for i in order]
        batches = _equal_shares(batches, num_shares)
    return select_shares(batches, shares if shuffle else sorted(shares), num_shares)


def select_shares(
    batches: Sequence[list[Draw]], shares: Sequence[int], num_shares: int
) -> list[list[Draw]]:
    """The batches of an epoch that belong to some shares.

    Args:
        batches: all batches of the epoch; batch i belongs to share i % num_shares.
        shares: shares to select, in the order within every round of `num_shares` batches.
        num_shares: number of shares.
    """
    if len(set(shares)) < len(shares) or not set(shares) <= set(range(num_shares)):
        raise ValueError(f"shares {list(shares)} of {num_shares}")
    return [
        batches[start + share]
        for start in range(0, len(batches), num_shares)
        for share in shares
        if start + share < len(batches)
    ]


def _by_duration(
    indices: list[int], durations_seconds: Sequence[float], batch_size: int, exact: bool
) -> list[int]:
    """Sort by duration: exactly, or into buckets of equal size that keep the given order."""
    by_duration = sorted(indices, key=lambda index: durations_seconds[index])
    if exact:
        return by_duration
    buckets = max(1, min(_MAXIMUM_BUCKETS, len(indices) // (2 * batch_size)))
    bounds = [
        durations_seconds[by_duration[len(by_duration) * i // buckets]] for i in range(1, buckets)
    ]
    placed: list[list[int]] = [[] for _ in range(buckets)]
    for index in indices:
        placed[sum(durations_seconds[index] >= bound for bound in bounds)].append(index)
    return [index for bucket in placed for index in bucket]


def _equal_shares(batches: list[list[Draw]], num_shares: int) -> list[list[Draw]]:
    """Redistribute the batches of an incomplete last round, one smaller batch per share."""
    extra = len(batches) % num_shares
    whole = batches[: len(batches) - extra]
    left = [draw for batch in batches[len(whole) :] for draw in batch]
    if len(left) >= num_shares:
        whole += [left[share::num_shares] for share in range(num_shares)]
    if not whole:
        raise UserError(
            f"{len(left)} training utterances are too few for {num_shares} shares.",
            where=f"{len(left)} utterances, {num_shares} shares",
            fix="Use fewer processes, or check that the corpus is complete.",
            code="launch-invalid",
        )
    return whole
