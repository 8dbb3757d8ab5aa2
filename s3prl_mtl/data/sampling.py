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
    rank: int = 0,
    world_size: int = 1,
) -> list[list[Draw]]:
    """The batches of one epoch on one rank, a pure function of the arguments.

    Training (`shuffle`): every utterance once over all ranks, in random order, the same number of
    batches on every rank. Where the batches do not divide evenly, the utterances of the last ones
    are dealt out in smaller batches, one to each rank; only when fewer utterances than ranks
    remain are these left to the next epoch.

    Evaluation (not `shuffle`): every utterance exactly once over all ranks, in the order given;
    ranks may differ by one batch. (lhotse's samplers repeat utterances here to make the ranks
    equal, which would change a metric.)

    Args:
        durations_seconds: duration of each utterance.
        batch_size: utterances in a batch.
        shuffle: whether this is training.
        epoch: changes the order.
        seed: changes the order.
        weights: draw as many utterances as there are, with replacement and these relative
            probabilities, instead of each one once.
        bucketed: put utterances of similar duration together.
        max_batch_seconds: end a batch earlier rather than exceed this total duration; a single
            longer utterance is a batch of its own.
        rank: this process.
        world_size: number of processes that share the epoch.

    Raises:
        UserError: a setting is out of range, or there are fewer utterances than ranks to train on.
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
    if not shuffle:
        return batches[rank::world_size]
    if bucketed:
        order = torch.randperm(len(batches), generator=generator).tolist()
        batches = [batches[i] for i in order]
    return _equal_share(batches, rank, world_size)


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


def _equal_share(batches: list[list[Draw]], rank: int, world_size: int) -> list[list[Draw]]:
    rounds, extra = divmod(len(batches), world_size)
    share = batches[rank : rounds * world_size : world_size]
    left = [draw for batch in batches[len(batches) - extra :] for draw in batch] if extra else []
    if len(left) >= world_size:
        share.append(left[rank::world_size])
    if not share:
        raise UserError(
            f"{len(left)} training utterances cannot be shared by {world_size} processes.",
            fix="Use fewer processes, or check that the corpus is complete.",
        )
    return share
