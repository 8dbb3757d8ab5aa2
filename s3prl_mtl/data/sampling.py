"""Which utterances make up which batch of an epoch."""

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
    """A seed of 63 bits that is a pure function of its parts, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def inverse_class_weights(labels: Sequence[str]) -> list[float]:
    """A weight for each utterance, inverse to how often its class occurs.

    Drawing with these weights makes every class equally likely, as SUPERB does for keyword
    spotting.

    Args:
        labels: the class of each utterance.

    Returns:
        `len(labels) / count of its class` for each utterance.
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
    max_batch_seconds: float | None = None,
    shares: Sequence[int] = (0,),
    num_shares: int = 1,
) -> list[list[Draw]]:
    """The batches of one epoch that make up some of its shares, a pure function of the arguments.

    Training (`shuffle`): every utterance once over all shares, in random order, the same number of
    batches in every share. Where the batches do not divide evenly, the utterances of the last ones
    are dealt out in smaller batches, one to each share; only when fewer utterances than shares
    remain are these left to the next epoch. Several shares come round by round: the first batch of
    each, in the order of `shares`, then the second of each, and so on.

    Evaluation (not `shuffle`): every utterance exactly once over all shares, in the order given;
    batch i belongs to share i % num_shares, so that shares may differ by one batch. (lhotse's
    samplers repeat utterances here to make them equal, which would change a metric.)

    Args:
        durations_seconds: duration of each utterance.
        batch_size: utterances in a batch.
        shuffle: whether this is training.
        epoch: changes the order.
        seed: changes the order.
        weights: draw as many utterances as there are, with replacement and these relative
            probabilities, instead of each one once.
        bucketed: put utterances of similar duration together.
        max_batch_seconds: end a batch earlier rather than exceed this total duration (the smaller
            batches that are dealt out at the end of a shared epoch may exceed it); a single
            longer utterance is a batch of its own.
        shares: which shares, of 0 to num_shares - 1, each at most once.
        num_shares: equal parts that the epoch is cut into.

    Raises:
        UserError: a setting is out of range, or there are fewer training utterances than shares.
    """
    _check_settings(len(durations_seconds), batch_size, weights, max_batch_seconds)
    generator = torch.Generator().manual_seed(derived_seed("order", seed, epoch))
    if weights is not None:
        chances = torch.as_tensor(weights, dtype=torch.float64)
        drawn = torch.multinomial(chances, len(chances), replacement=True, generator=generator)
        indices = drawn.tolist()
    elif shuffle:
        indices = torch.randperm(len(durations_seconds), generator=generator).tolist()
    else:
        indices = list(range(len(durations_seconds)))

    if bucketed:
        indices = _by_duration(indices, durations_seconds, batch_size, exact=not shuffle)
    batches = _cut(list(enumerate(indices)), durations_seconds, batch_size, max_batch_seconds)
    if shuffle:
        if bucketed:
            order = torch.randperm(len(batches), generator=generator).tolist()
            batches = [batches[i] for i in order]
        batches = _whole_rounds(batches, num_shares)
    return batches_of_shares(batches, shares if shuffle else sorted(shares), num_shares)


def batches_of_shares(
    batches: Sequence[list[Draw]], shares: Sequence[int], num_shares: int
) -> list[list[Draw]]:
    """Those of an epoch's batches that belong to some shares.

    Args:
        batches: of the whole epoch; batch i belongs to share i % num_shares.
        shares: which ones, in the order in which they come in every round of `num_shares` batches.
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


def _check_settings(
    utterances: int,
    batch_size: int,
    weights: Sequence[float] | None,
    max_batch_seconds: float | None,
) -> None:
    if batch_size < 1:
        raise UserError(f"A batch size of {batch_size} is not possible.", fix="Set 1 or more.")
    if max_batch_seconds is not None and max_batch_seconds <= 0:
        raise UserError(
            f"A batch of at most {max_batch_seconds} seconds is not possible.",
            fix="Set a positive duration, or null for no limit.",
        )
    if weights is not None and len(weights) != utterances:
        raise ValueError(f"{len(weights)} weights for {utterances} utterances")


def _by_duration(
    indices: list[int], durations_seconds: Sequence[float], batch_size: int, exact: bool
) -> list[int]:
    """Sorted by duration: exactly, or by buckets of equal size with the given order in each."""
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


def _cut(
    draws: list[Draw],
    durations_seconds: Sequence[float],
    batch_size: int,
    max_batch_seconds: float | None,
) -> list[list[Draw]]:
    batches: list[list[Draw]] = []
    batch: list[Draw] = []
    seconds = 0.0
    for draw in draws:
        duration = durations_seconds[draw[1]]
        too_long = max_batch_seconds is not None and seconds + duration > max_batch_seconds
        if batch and (len(batch) == batch_size or too_long):
            batches.append(batch)
            batch, seconds = [], 0.0
        batch.append(draw)
        seconds += duration
    if batch:
        batches.append(batch)
    return batches


def _whole_rounds(batches: list[list[Draw]], num_shares: int) -> list[list[Draw]]:
    """The batches with those that do not make a round dealt out anew, one for each share.

    A batch of these may exceed the limit of a batch's duration: it holds fewer utterances, but not
    those that were put together for it.
    """
    extra = len(batches) % num_shares
    whole = batches[: len(batches) - extra]
    left = [draw for batch in batches[len(whole) :] for draw in batch]
    if len(left) >= num_shares:
        whole += [left[share::num_shares] for share in range(num_shares)]
    if not whole:
        raise UserError(
            f"{len(left)} training utterances cannot be shared by {num_shares} processes.",
            fix="Use fewer processes, or check that the corpus is complete.",
        )
    return whole
