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
from s3prl_mtl.data.sampling import Draw, derived_seed, plan_batches
from s3prl_mtl.data.transport import Parcel, pack
from s3prl_mtl.data.workers import StopSignalGuard
from s3prl_mtl.errors import UserError

logger = logging.getLogger(__name__)

Collate = Callable[[list[Cut], list[torch.Generator]], tuple[Any, ...]]
"""Turns the cuts of a batch, and a random generator for each, into (waveforms, *others)."""


def make_loader(
    cuts: Iterable[Cut],
    collate: Collate,
    *,
    batch_size: int,
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
        batch_size: utterances per batch.
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
    chosen = cuts if isinstance(cuts, Manifest) else list(cuts)
    if not len(chosen):
        raise UserError("The split has no utterances.", code="corpus-empty")
    epoch_plan = plan_batches(
        cuts.durations if isinstance(cuts, Manifest) else [cut.duration for cut in chosen],
        batch_size=batch_size,
        shuffle=shuffle,
        epoch=epoch,
        seed=seed,
        weights=weights,
        bucketed=bucketed,
        sliding=sliding,
        num_shares=num_shares,
    )
    plan = epoch_plan.select_shares(shares if shuffle else sorted(shares), num_shares)
    if not 0 <= skip_batches <= len(plan):
        raise UserError(
            "The position in the epoch does not exist: the corpus or the batch size has changed.",
            where=f"batch {skip_batches} of {len(plan)}, epoch {epoch}",
            fix="Restore the corpus and the batch size of the checkpoint, or start a new run.",
            code="resume-conflict",
        )
    return EpochLoader(
        _BatchDataset(chosen, collate, seed, epoch, training=shuffle),
        sampler=plan[skip_batches:],
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=StopSignalGuard(),
        reads_all_shares=len(shares) == num_shares,
        epoch_batches=len(epoch_plan),
        # DataLoader draws a seed for its workers; drawn from the global state, it would make
        # training depend on the number of loaders created before.
        generator=torch.Generator().manual_seed(derived_seed("workers", seed, epoch)),
    )


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

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.dropped = 0
        self.batches_read = 0
        for sent in super().__iter__():
            loaded = sent.unpack() if isinstance(sent, Parcel) else sent
            self.batches_read += 1
            if isinstance(loaded, UserError):
                raise loaded
            self.dropped += loaded.dropped
            if loaded.batch is not None:
                yield loaded.batch
        dataset = self.dataset
        assert isinstance(dataset, _BatchDataset)
        if not dataset.training and self.reads_all_shares:
            check_dropped(self.dropped, self.utterances)

    @property
    def utterances(self) -> int:
        """Utterances of the split over all shares."""
        dataset = self.dataset
        assert isinstance(dataset, _BatchDataset)
        return len(dataset.cuts)


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


@dataclass
class _Loaded:
    """A batch, None if nothing in it is decodable, and the number of dropped utterances."""

    batch: tuple[Any, ...] | None
    dropped: int


class _BatchDataset(Dataset[Any]):
    """Loads and collates a batch, indexed by its draws."""

    def __init__(
        self, cuts: Sequence[Cut], collate: Collate, seed: int, epoch: int, training: bool
    ) -> None:
        self.cuts = cuts
        self.collate = collate
        self.seed = seed
        self.epoch = epoch
        self.training = training

    def __getitem__(self, batch: Sequence[Draw]) -> _Loaded | UserError | Parcel:
        try:
            loaded = self._readable(batch)
        except UserError as error:
            # Returned, not raised: DataLoader would turn it into text with a traceback.
            return error
        return loaded if get_worker_info() is None else pack(loaded)

    def _readable(self, batch: Sequence[Draw]) -> _Loaded:
        """Load a batch without its undecodable files."""
        draws = list(batch)
        while True:
            try:
                return _Loaded(self._load(draws), len(batch) - len(draws))
            except UnreadableAudio as error:
                readable = [d for d in draws if self.cuts[d[1]].id != error.utterance_id]
                if len(readable) == len(draws):
                    raise
                logger.warning("%s Dropped from this batch.", error)
                if not readable and self.training:
                    readable = self._substitute(*draws[-1])
                if not readable:
                    if self.training:
                        raise
                    return _Loaded(None, len(batch))
                draws = readable

    def _load(self, draws: Sequence[Draw]) -> tuple[Any, ...]:
        cuts = [self.cuts[index] for _, index in draws]
        generators = [
            item_generator(self.seed, self.epoch, position, cut.id)
            for (position, _), cut in zip(draws, cuts, strict=True)
        ]
        return self.collate(cuts, generators)

    def _substitute(self, position: int, index: int) -> list[Draw]:
        """A list of the next decodable utterance after `index`; empty if there is none."""
        for offset in range(1, len(self.cuts)):
            draw = (position, (index + offset) % len(self.cuts))
            try:
                self._load([draw])
            except UnreadableAudio:
                continue
            return [draw]
        return []
