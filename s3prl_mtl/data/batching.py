"""Data loader over cuts, with batches determined by seed and epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lhotse.cut import Cut
from torch.utils.data import DataLoader, Dataset, get_worker_info

from s3prl_mtl.data.audio import UnreadableAudio
from s3prl_mtl.data.manifest import Manifest
from s3prl_mtl.data.manifest_cache import MAXIMUM_SKIPPED
from s3prl_mtl.data.randomness import RandomStream
from s3prl_mtl.data.sampling import BatchPlan, Draw, derived_seed, plan_batches
from s3prl_mtl.data.transport import PackedBatch, pack
from s3prl_mtl.data.workers import StopSignalGuard, block_sigterm
from s3prl_mtl.errors import UserError

logger = logging.getLogger(__name__)

Collate = Callable[[list[Cut], list[torch.Generator]], tuple[Any, ...]]
"""Turns the cuts of a batch, and a random generator for each, into (waveforms, *others)."""


def make_loader(
    cuts: Iterable[Cut],
    collate: Collate,
    *,
    batch_size: int | None = None,
    batch_seconds: float | None = None,
    shuffle: bool,
    epoch: int = 0,
    seed: int = 0,
    weights: Sequence[float] | np.ndarray | None = None,
    bucketed: bool = False,
    sliding: bool = False,
    num_workers: int = 0,
    shares: Sequence[int] = (0,),
    num_shares: int = 1,
    skip_batches: int = 0,
) -> EpochLoader:
    """A loader of some shares of an epoch.

    The order is a pure function of `seed` and `epoch` (:func:`plan_batches`), and so are the random
    choices that `collate` makes with its generators (:func:`item_generator`), for any
    `num_workers`. The global random state is neither read nor changed.

    A file that cannot be decoded is dropped from its batch with a warning. If that would empty a
    training batch, the next decodable utterance of the split takes its place.

    Args:
        cuts: the split; its cuts are made when they are drawn if it is a `Manifest`.
        collate: called in the worker with the cuts of a batch and a generator for each; returns
            (waveforms, *others).
        batch_size: utterances per batch; with `batch_seconds` at most so many.
        batch_seconds: longest duration of a batch in total, as in :func:`plan_batches`.
        shuffle: training: random order, equally many batches in every share. Otherwise
            evaluation: every utterance exactly once over all shares, in order.
        epoch: number of the epoch, from 0.
        seed: seed of the run.
        weights: relative probability of each utterance, as in :func:`plan_batches`.
        bucketed: whether to group utterances of similar duration.
        sliding: batches that overlap, as in :func:`plan_batches`.
        num_workers: loader processes; 0 loads in this one. They survive a scheduler's stop signals
            for a while (:class:`StopSignalGuard`).
        shares: the shares of the epoch to read.
        num_shares: number of shares of the epoch.
        skip_batches: batches of this loader to skip, to resume from a checkpoint.

    Returns:
        Iterable over the results of `collate`; its length is the number of batches.

    Raises:
        UserError: no utterances, a setting out of range, or more batches to skip than there are.
    """
    source = BatchSource(
        cuts=cuts if isinstance(cuts, Manifest) else list(cuts),
        collate=collate,
        batch_size=batch_size,
        batch_seconds=batch_seconds,
        training=shuffle,
        seed=seed,
        weights=weights,
        bucketed=bucketed,
        sliding=sliding,
    )
    return source.loader(epoch, shares, num_shares, skip_batches, num_workers)


def item_generator(seed: int, epoch: int, position: int, cut_id: str) -> torch.Generator:
    """Random generator of one draw of an utterance: a pure function of the arguments.

    A draw gives the same crop in every worker and after resumption; an utterance that is drawn
    twice in an epoch gets two generators.

    Args:
        seed: seed of the run.
        epoch: number of the task's epoch.
        position: position of the draw in the epoch, over all ranks.
        cut_id: id of the utterance.
    """
    return torch.Generator().manual_seed(derived_seed("item", seed, epoch, position, cut_id))


@dataclass
class Loaded:
    """A batch, None if nothing in it is decodable, and the number of dropped utterances."""

    batch: tuple[Any, ...] | None
    dropped: int


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """The batches of a split in any epoch; the fields are arguments of :func:`make_loader`.

    A loader reads one epoch of a source; the pool of a run reads all epochs of several
    (:mod:`.pool`).
    """

    cuts: Sequence[Cut]
    collate: Collate
    batch_size: int | None = None
    batch_seconds: float | None = None
    training: bool
    seed: int = 0
    weights: Sequence[float] | np.ndarray | None = None
    bucketed: bool = False
    sliding: bool = False

    def plan(
        self, epoch: int, shares: Sequence[int], num_shares: int, skip_batches: int = 0
    ) -> tuple[BatchPlan, int]:
        """The draws of each batch of some shares.

        Returns:
            The batches after the first `skip_batches`, and the number of batches of the epoch over
            all shares.

        Raises:
            UserError: as :func:`make_loader`.
        """
        if not len(self.cuts):
            raise UserError("The split has no utterances.", code="corpus-empty")
        whole = plan_batches(
            self.cuts.durations
            if isinstance(self.cuts, Manifest)
            else [cut.duration for cut in self.cuts],
            batch_size=self.batch_size,
            batch_seconds=self.batch_seconds,
            shuffle=self.training,
            epoch=epoch,
            seed=self.seed,
            weights=self.weights,
            bucketed=self.bucketed,
            sliding=self.sliding,
            num_shares=num_shares,
        )
        own = whole.select_shares(shares if self.training else sorted(shares), num_shares)
        if not 0 <= skip_batches <= len(own):
            raise UserError(
                "The position in the epoch does not exist: the corpus or the batch size has "
                "changed.",
                where=f"batch {skip_batches} of {len(own)}, epoch {epoch}",
                fix="Restore the corpus and the batch size of the checkpoint, or start a new run.",
                code="resume-conflict",
            )
        return own[skip_batches:], len(whole)

    def loader(
        self,
        epoch: int,
        shares: Sequence[int],
        num_shares: int,
        skip_batches: int = 0,
        num_workers: int = 0,
    ) -> EpochLoader:
        """A loader of one epoch, as :func:`make_loader` returns it."""
        plan, epoch_batches = self.plan(epoch, shares, num_shares, skip_batches)
        return EpochLoader(
            _EpochDataset(self, epoch),
            sampler=plan,
            batch_size=None,
            num_workers=num_workers,
            worker_init_fn=StopSignalGuard(),
            reads_all_shares=len(shares) == num_shares,
            epoch_batches=epoch_batches,
            # DataLoader draws a seed for its workers; drawn from the global state, it would make
            # training depend on the number of loaders created before.
            generator=torch.Generator().manual_seed(derived_seed("workers", self.seed, epoch)),
        )

    def load(self, epoch: int, batch: Sequence[Draw]) -> Loaded:
        """Load a batch without its undecodable files.

        A pure function of the arguments: the global random generators, too, have a state of the
        batch while it is loaded.

        Raises:
            UserError: a file cannot be read, or no utterance of a training split can be decoded.
        """
        with RandomStream(derived_seed("batch", self.seed, epoch, *batch[0])).active():
            return self._readable(epoch, batch)

    def _readable(self, epoch: int, batch: Sequence[Draw]) -> Loaded:
        draws = list(batch)
        while True:
            try:
                return Loaded(self._items(epoch, draws), len(batch) - len(draws))
            except UnreadableAudio as error:
                readable = [d for d in draws if self.cuts[d[1]].id != error.utterance_id]
                if len(readable) == len(draws):
                    raise
                logger.warning("%s Dropped from this batch.", error)
                if not readable and self.training:
                    readable = self._substitute(epoch, *draws[-1])
                if not readable:
                    if self.training:
                        raise
                    return Loaded(None, len(batch))
                draws = readable

    def _items(self, epoch: int, draws: Sequence[Draw]) -> tuple[Any, ...]:
        cuts = [self.cuts[index] for _, index in draws]
        generators = [
            item_generator(self.seed, epoch, position, cut.id)
            for (position, _), cut in zip(draws, cuts, strict=True)
        ]
        return self.collate(cuts, generators)

    def _substitute(self, epoch: int, position: int, index: int) -> list[Draw]:
        """A list of the next decodable utterance after `index`; empty if there is none."""
        for offset in range(1, len(self.cuts)):
            draw = (position, (index + offset) % len(self.cuts))
            try:
                self._items(epoch, [draw])
            except UnreadableAudio:
                continue
            return [draw]
        return []


class EpochLoader(DataLoader[Any]):
    """A DataLoader that re-raises a worker's `UserError` unchanged and skips empty batches.

    Args:
        arguments: arguments of DataLoader.
        epoch_batches: batches of the epoch over all shares.
        reads_all_shares: whether `dropped` counts all utterances dropped from the epoch.
        keywords: keyword arguments of DataLoader.
    """

    def __init__(
        self, *arguments: Any, epoch_batches: int, reads_all_shares: bool, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.epoch_batches = epoch_batches
        self.reads_all_shares = reads_all_shares
        self.dropped = 0
        """Undecodable utterances since the start of the iteration."""
        self.batches_read = 0
        """Batches since the start of the iteration, including skipped ones."""
        self.reading: Iterator[Any] | None = None
        """The iterator of DataLoader, with its worker processes."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.dropped = 0
        self.batches_read = 0
        with block_sigterm():
            self.reading = super().__iter__()
        return self._batches(self.reading)

    def _batches(self, reading: Iterator[Any]) -> Iterator[Any]:
        for sent in reading:
            loaded = sent.unpack() if isinstance(sent, PackedBatch) else sent
            self.batches_read += 1
            if isinstance(loaded, UserError):
                raise loaded
            self.dropped += loaded.dropped
            if loaded.batch is not None:
                yield loaded.batch
        if not self._source.training and self.reads_all_shares:
            check_dropped(self.dropped, self.utterances)

    @property
    def utterances(self) -> int:
        """Utterances of the split over all shares."""
        return len(self._source.cuts)

    @property
    def _source(self) -> BatchSource:
        assert isinstance(self.dataset, _EpochDataset)
        return self.dataset.source


def check_dropped(dropped: int, utterances: int) -> None:
    """Check that at most 1 % of an evaluated split was undecodable.

    Raises:
        UserError: more than that.
    """
    if dropped > MAXIMUM_SKIPPED * utterances:
        raise UserError(
            f"More than {MAXIMUM_SKIPPED:.0%} of an evaluated split cannot be decoded.",
            where=f"{dropped} of {utterances} utterances, listed in the log",
            fix="Replace these files, or remove them from the corpus and its lists.",
            code="audio-unreadable",
        )


class _EpochDataset(Dataset[Any]):
    """The batches of an epoch, indexed by their draws."""

    def __init__(self, source: BatchSource, epoch: int) -> None:
        self.source = source
        self.epoch = epoch

    def __getitem__(self, batch: Sequence[Draw]) -> Loaded | UserError | PackedBatch:
        try:
            loaded = self.source.load(self.epoch, batch)
        except UserError as error:
            # Returned, not raised: DataLoader would turn it into text with a traceback.
            return error
        return loaded if get_worker_info() is None else pack(loaded)
