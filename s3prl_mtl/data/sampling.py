"""Division of an epoch into batches and shares.

An epoch is a few arrays of numbers, from which a batch is made when it is read: an epoch of
millions of utterances is planned in a moment, and read from any batch on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from s3prl_mtl.errors import UserError

Draw = tuple[int, int]
"""(position in the epoch, index of the utterance)."""

_MAXIMUM_BUCKETS = 20


def derived_seed(*parts: object) -> int:
    """A 63-bit seed: a pure function of its parts, equal on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def inverse_class_weights(labels: Sequence[str]) -> np.ndarray:
    """Sampling weights that make every class equally likely, as in SUPERB's keyword spotting.

    Args:
        labels: the class of each utterance.

    Returns:
        `len(labels) / (number of utterances of the class)` for each utterance, (utterances,).
    """
    classes = pa.array(labels).dictionary_encode().indices.to_numpy()
    return np.asarray(len(labels) / np.bincount(classes)[classes])


class BatchPlan(Sequence[list[Draw]]):
    """The batches of some shares of an epoch, each a list of draws.

    Args:
        order: utterances in the order of the epoch before it is divided, int64 (draws,).
        batch_size: draws of a batch, but the last; not used with `bounds`.
        sliding: a batch begins at each utterance of `order`, instead of after the batch before it.
        batch_order: numbers of the batches in the order in which they are read, int64.
        last: batches to read after these.
        numbers: batches of the epoch to return; all by default.
        bounds: where batches of different sizes begin in `order`, and the end of the last, int64
            (batches + 1,).
    """

    def __init__(
        self,
        order: np.ndarray,
        batch_size: int,
        sliding: bool,
        batch_order: np.ndarray,
        last: Sequence[list[Draw]] = (),
        numbers: np.ndarray | None = None,
        bounds: np.ndarray | None = None,
    ) -> None:
        self._order = order
        self._batch_size = batch_size
        self._sliding = sliding
        self._batch_order = batch_order
        self._last = last
        self._numbers = np.arange(len(batch_order) + len(last)) if numbers is None else numbers
        self._bounds = bounds

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        """The draws of a batch, or a plan of several batches (a slice)."""
        if isinstance(index, slice):
            return self._of(self._numbers[index])
        number = int(self._numbers[index])
        if number >= len(self._batch_order):
            return self._last[number - len(self._batch_order)]
        return self._draws(int(self._batch_order[number]))

    def _draws(self, batch: int) -> list[Draw]:
        if self._bounds is not None:
            first, end = self._bounds[batch : batch + 2].tolist()
            return list(enumerate(self._order[first:end].tolist(), start=first))
        position = batch * self._batch_size
        start = min(batch, len(self._order) - self._batch_size) if self._sliding else position
        indices = self._order[start : start + self._batch_size].tolist()
        return list(enumerate(indices, start=position))

    def _of(self, numbers: np.ndarray) -> BatchPlan:
        fields = (self._order, self._batch_size, self._sliding, self._batch_order, self._last)
        return BatchPlan(*fields, numbers, self._bounds)

    def equal_shares(self, num_shares: int) -> BatchPlan:
        """Redistribute the batches of an incomplete last round, one smaller batch per share.

        Raises:
            UserError: there are fewer draws than shares.
        """
        whole = len(self) - len(self) % num_shares
        left = [draw for batch in self[whole:] for draw in batch]
        last = [left[share::num_shares] for share in range(num_shares)]
        if len(left) < num_shares:
            last = []
            if not whole:
                raise UserError(
                    f"{len(left)} training utterances are too few for {num_shares} shares.",
                    where=f"{len(left)} utterances, {num_shares} shares",
                    fix="Use fewer processes, or check that the corpus is complete.",
                    code="launch-invalid",
                )
        order = self._batch_order[:whole]
        sizes = self._batch_size, self._sliding
        return BatchPlan(self._order, *sizes, order, last, bounds=self._bounds)

    def select_shares(self, shares: Sequence[int], num_shares: int) -> BatchPlan:
        """The batches of the epoch that belong to some shares.

        Args:
            shares: shares to select, in the order within every round of `num_shares` batches.
            num_shares: number of shares; batch i belongs to share i % num_shares.
        """
        if len(set(shares)) < len(shares) or not set(shares) <= set(range(num_shares)):
            raise ValueError(f"shares {list(shares)} of {num_shares}")
        rounds = np.arange(0, len(self), num_shares)
        numbers = (rounds[:, None] + np.asarray(shares, dtype=np.int64)).reshape(-1)
        return self._of(self._numbers[numbers[numbers < len(self)]])


def plan_batches(
    durations_seconds: Sequence[float] | np.ndarray,
    *,
    batch_size: int | None = None,
    batch_seconds: float | None = None,
    shuffle: bool,
    epoch: int = 0,
    seed: int = 0,
    weights: Sequence[float] | np.ndarray | None = None,
    bucketed: bool = False,
    sliding: bool = False,
    num_shares: int = 1,
) -> BatchPlan:
    """The batches of an epoch, of all shares: a pure function of the arguments.

    Training (`shuffle`): every utterance once over all shares, in random order, with equally many
    batches in every share. If batches do not divide evenly, the utterances of the last ones are
    redistributed in smaller batches, one per share; if fewer utterances than shares remain, they
    are dropped from this epoch. Several shares are interleaved: the first batch of each, then the
    second of each, and so on (:meth:`BatchPlan.select_shares`).

    Evaluation (not `shuffle`): every utterance exactly once over all shares, in the given order;
    batch i belongs to share i % num_shares, so that shares may differ by one batch. (lhotse's
    samplers pad shares with repeated utterances, which would change a metric.)

    Args:
        durations_seconds: duration of each utterance.
        batch_size: utterances per batch; with `batch_seconds` at most so many, None for any number.
        batch_seconds: longest duration of a batch in total; a longer utterance is a batch of its
            own. None for batches of `batch_size`.
        shuffle: training if true, otherwise evaluation.
        epoch: number of the epoch; changes the order.
        seed: changes the order.
        weights: relative probabilities; draw as many utterances as there are, with replacement,
            instead of each one once.
        bucketed: group utterances of similar duration.
        sliding: a training batch for each utterance, with those that follow it in the order of
            falling duration (the last batches are equal), in place of `bucketed`: an epoch has an
            utterance about `batch_size` times, as the multi-task branch reads `pr` and `sf`. Not
            with `batch_seconds`.
        num_shares: number of equal parts of the epoch.

    Raises:
        UserError: a setting is out of range, or there are fewer training utterances than shares.
    """
    _check_limits(batch_size, batch_seconds, sliding and shuffle)
    durations = np.asarray(durations_seconds, dtype=np.float64)
    count = len(durations)
    if weights is not None and len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} utterances")
    generator = torch.Generator().manual_seed(derived_seed("order", seed, epoch))
    if weights is not None:
        chances = torch.as_tensor(weights, dtype=torch.float64)
        order = torch.multinomial(chances, count, replacement=True, generator=generator).numpy()
    elif shuffle:
        order = torch.randperm(count, generator=generator).numpy()
    else:
        order = np.arange(count)

    sliding = sliding and shuffle
    bounds = None
    if sliding:
        order = np.argsort(-durations, kind="stable")
        size = min(batch_size or 1, count)
        batches = count
    else:
        if bucketed:
            mean = durations.mean() if count else 1.0
            size = batch_size or max(1, round(float((batch_seconds or 0.0) / mean)))
            order = _by_duration(order, durations, size, exact=not shuffle)
        size = batch_size or 1
        if batch_seconds is None:
            batches = -(-count // size)
        else:
            bounds = _bounds(durations[order], batch_seconds, batch_size)
            batches = len(bounds) - 1
    shuffled = shuffle and (bucketed or sliding)
    batch_order = (
        torch.randperm(batches, generator=generator).numpy() if shuffled else np.arange(batches)
    )
    plan = BatchPlan(order, size, sliding, batch_order, bounds=bounds)
    return plan.equal_shares(num_shares) if shuffle else plan


def _check_limits(size: int | None, seconds: float | None, sliding: bool) -> None:
    if size is None and seconds is None:
        what, fix = "A batch has no limit.", "Set batch_size or batch_seconds."
    elif size is not None and size < 1:
        what, fix = f"The batch size is {size}.", "Set 1 or more."
    elif seconds is not None and seconds <= 0:
        what, fix = f"A batch of {seconds} s is empty.", "Set more than 0."
    elif seconds is not None and sliding:
        what, fix = "Overlapping batches have no limit in seconds.", "Leave out one of the two."
    else:
        return
    where = "batch_seconds" if seconds is not None else "batch_size"
    raise UserError(what, where=where, fix=fix, code="invalid-value")


def _bounds(durations: np.ndarray, seconds: float, size: int | None) -> np.ndarray:
    """The first utterance of each batch, filled greedily, and the end of the last one."""
    ends = np.cumsum(durations)
    bounds = [0]
    while bounds[-1] < len(durations):
        start = bounds[-1]
        before = ends[start - 1] if start else 0.0
        end = max(start + 1, int(np.searchsorted(ends, before + seconds, side="right")))
        bounds.append(end if size is None else min(end, start + size))
    return np.asarray(bounds)


def _by_duration(
    order: np.ndarray, durations: np.ndarray, batch_size: int, exact: bool
) -> np.ndarray:
    """Sort by duration: exactly, or into buckets of equal size that keep the given order."""
    by_duration = order[np.argsort(durations[order], kind="stable")]
    if exact:
        return by_duration
    buckets = max(1, min(_MAXIMUM_BUCKETS, len(order) // (2 * batch_size)))
    bounds = durations[by_duration[len(order) * np.arange(1, buckets) // buckets]]
    placed = np.searchsorted(bounds, durations[order], side="right")
    return order[np.argsort(placed, kind="stable")]
