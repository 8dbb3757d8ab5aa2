"""From cuts to batches: a data loader whose every batch follows from seed and epoch."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch.utils.data import DataLoader, Dataset

from s3prl_mtl.data.audio import UnreadableAudio
from s3prl_mtl.data.manifests import MAXIMUM_SKIPPED
from s3prl_mtl.data.sampling import Draw, batches_of_shares, derived_seed, plan_batches
from s3prl_mtl.errors import UserError

logger = logging.getLogger(__name__)

SECONDS_AFTER_SIGTERM = 30
"""How long a loader worker goes on; schedulers mostly kill after 30 seconds."""

Collate = Callable[[list[Cut], list[torch.Generator]], tuple[Any, ...]]
"""Turns the cuts of a batch, and a source of random choices for each, into (waveforms, *others)."""


def make_loader(
    cuts: CutSet,
    collate: Collate,
    *,
    batch_size: int,
    shuffle: bool,
    epoch: int = 0,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    bucketed: bool = False,
    max_batch_seconds: float | None = None,
    num_workers: int = 0,
    shares: Sequence[int] = (0,),
    num_shares: int = 1,
    skip_batches: int = 0,
) -> EpochLoader:
    """A loader of those of an epoch's batches that make up some of its shares.

    The order is a pure function of `seed` and `epoch` (:func:`plan_batches`), and so is every
    random choice that `collate` makes with the generators it is given (:func:`item_generator`),
    whatever `num_workers` is. The global random state is neither read nor changed.

    A file that turns out damaged while it is decoded is left out of its batch with a warning. A
    training batch that would be empty without it takes the next utterance of the set instead.

    Args:
        cuts: the split.
        collate: runs in the worker, gets the batch's cuts and a generator for each, returns
            (waveforms, *others).
        shuffle: training: random order, equally many batches in every share. Otherwise
            evaluation: every utterance exactly once over all shares, in order.
        skip_batches: leave out so many batches of this loader, to go on from a checkpoint.
        batch_size: utterances in a batch; with all further arguments as in :func:`plan_batches`.
        epoch: number of the epoch, from 0.
        seed: of the run.
        weights: how often each utterance is drawn.
        bucketed: whether a batch holds utterances of like duration.
        max_batch_seconds: the most audio in a batch.
        shares: the shares of the epoch to read.
        num_shares: shares in which the epoch is divided.
        num_workers: processes that load; 0 loads in this one. They outlive the signals by which a
            scheduler ends a job (:class:`OutlivesStopSignals`).

    Returns:
        Iterable over `collate`'s results; its length is the number of batches that it yields.

    Raises:
        UserError: no utterances, or a setting out of range, or more batches to skip than the
            epoch has.
    """
    chosen = list(cuts)
    if not chosen:
        raise UserError("There are no utterances to make batches of.")
    # Of all shares: the choice among them is made below, where their number is needed too.
    epoch_plan = plan_batches(
        [cut.duration for cut in chosen],
        batch_size=batch_size,
        shuffle=shuffle,
        epoch=epoch,
        seed=seed,
        weights=weights,
        bucketed=bucketed,
        max_batch_seconds=max_batch_seconds,
        shares=range(num_shares),
        num_shares=num_shares,
    )
    plan = batches_of_shares(epoch_plan, shares if shuffle else sorted(shares), num_shares)
    if not 0 <= skip_batches <= len(plan):
        raise UserError(
            f"Batch {skip_batches} of epoch {epoch} does not exist: it has {len(plan)} batches.",
            fix="The corpus or the batch size changed since the checkpoint; train from its start.",
        )
    return EpochLoader(
        _Batches(chosen, collate, seed, epoch, training=shuffle),
        sampler=plan[skip_batches:],
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=OutlivesStopSignals(),
        is_whole=len(shares) == num_shares,
        epoch_batches=len(epoch_plan),
        # DataLoader draws a seed for its workers; from the global state that would make training
        # depend on how often loaders were made.
        generator=torch.Generator().manual_seed(derived_seed("workers", seed, epoch)),
    )


def item_generator(seed: int, epoch: int, position: int, cut_id: str) -> torch.Generator:
    """The source of random choices for one drawn utterance, a pure function of the arguments.

    The same draw gives the same crop whichever worker makes it and wherever training was resumed;
    an utterance drawn twice in an epoch gives two crops.

    Args:
        seed: of the run.
        epoch: of the task.
        position: of the draw in the epoch, over all ranks.
        cut_id: of the utterance.
    """
    return torch.Generator().manual_seed(derived_seed("item", seed, epoch, position, cut_id))


class EpochLoader(DataLoader[Any]):
    """Raises a mistake that a worker met as that mistake, and passes over empty batches.

    Args:
        epoch_batches: batches of the whole epoch, over all shares.
        is_whole: it reads all shares, so that what it had to leave out is all that was.
        arguments: DataLoader's.
    """

    def __init__(
        self, *arguments: Any, epoch_batches: int, is_whole: bool, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.epoch_batches = epoch_batches
        self.is_whole = is_whole
        self.dropped = 0
        """Utterances that could not be decoded, since iteration began."""
        self.batches_read = 0
        """Since iteration began, with the ones that were passed over."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.dropped = 0
        self.batches_read = 0
        for loaded in super().__iter__():
            self.batches_read += 1
            if isinstance(loaded, UserError):
                raise loaded
            self.dropped += loaded.dropped
            if loaded.batch is not None:
                yield loaded.batch
        dataset = self.dataset
        assert isinstance(dataset, _Batches)
        if not dataset.training and self.is_whole:
            check_dropped(self.dropped, len(dataset.cuts))

    @property
    def utterances(self) -> int:
        """Of the split, over all shares."""
        dataset = self.dataset
        assert isinstance(dataset, _Batches)
        return len(dataset.cuts)


def check_dropped(dropped: int, utterances: int) -> None:
    """Refuse an evaluation that had to leave too much out.

    Raises:
        UserError: more than 1 % of a split could not be decoded.
    """
    if dropped > MAXIMUM_SKIPPED * utterances:
        raise UserError(
            f"{dropped} of {utterances} utterances of an evaluated split cannot be decoded, more "
            f"than {MAXIMUM_SKIPPED:.0%}.",
            where="the files that the log names",
            fix="Unpack the corpus again, or take these files out of it.",
        )


class OutlivesStopSignals:
    """Prepares a loader worker for the signals that a scheduler sends to all processes of a job.

    The run finishes its step after such a signal and saves itself, and it needs its workers for
    that: SIGUSR1 and SIGINT are ignored, and after SIGTERM a worker goes on for
    `SECONDS_AFTER_SIGTERM`. When it is its parent that terminates it, it ends at once. (On macOS,
    where Python cannot tell who sent a signal, SIGTERM does what it always does.)

    Args:
        init: what else prepares the worker, called with the worker's number.
    """

    def __init__(self, init: Callable[[int], object] | None = None) -> None:
        self.init: Callable[[int], object] | None = init

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):
            # A handler would not learn the sender. Threads inherit what is blocked here, so that
            # the signal waits for the one thread that asks for it.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_wait_for_sigterm, daemon=True).start()
        if self.init is not None:
            self.init(worker)


def _wait_for_sigterm() -> None:
    parent = multiprocessing.parent_process()
    counting = False
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if parent is not None and sender == parent.pid:
            # As torch's own handler does: a parent that exits must not be kept waiting.
            os._exit(0)
        if not counting:
            # Once: a second signal must not put it off.
            signal.alarm(SECONDS_AFTER_SIGTERM)
            counting = True


@dataclass
class _Loaded:
    """What came of a batch: None if nothing of it could be decoded; how much was left out."""

    batch: tuple[Any, ...] | None
    dropped: int


class _Batches(Dataset[Any]):
    """Batches addressed by their plan: `dataset[batch]` loads and collates it."""

    def __init__(
        self, cuts: list[Cut], collate: Collate, seed: int, epoch: int, training: bool
    ) -> None:
        self.cuts = cuts
        self.collate = collate
        self.seed = seed
        self.epoch = epoch
        self.training = training

    def __getitem__(self, batch: Sequence[Draw]) -> _Loaded | UserError:
        try:
            return self._readable(batch)
        except UserError as error:
            # Raised in a worker it would arrive as a traceback: it is handed over instead.
            return error

    def _readable(self, batch: Sequence[Draw]) -> _Loaded:
        """The batch without its damaged files."""
        draws = list(batch)
        while True:
            try:
                return _Loaded(self._load(draws), len(batch) - len(draws))
            except UnreadableAudio as error:
                readable = [d for d in draws if self.cuts[d[1]].id != error.utterance_id]
                if len(readable) == len(draws):
                    raise
                logger.warning("%s It is left out of this batch.", error)
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
        """The first utterance after `index` that can be loaded, in a list; empty if none can."""
        for offset in range(1, len(self.cuts)):
            draw = (position, (index + offset) % len(self.cuts))
            try:
                self._load([draw])
            except UnreadableAudio:
                continue
            return [draw]
        return []
