"""One epoch of one expert, by shares, whatever the expert's loader knows of shares."""

from __future__ import annotations

import inspect
import itertools
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from s3prl_mtl.data.batching import OutlivesStopSignals
from s3prl_mtl.data.randomness import RandomStream
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.errors import UserError

logger = logging.getLogger(__name__)

MAXIMUM_WORKER_DEATHS = 3
"""Workers that may die one after the other without a batch between them."""

_DEATH = re.compile(r"DataLoader worker \(pid|Pin memory thread exited unexpectedly")
_OVER = object()


@dataclass
class Batch:
    """One batch of an expert, or some of its utterances.

    Args:
        task: name of the expert's task.
        number: in the epoch, over all shares; the share is `number % num_shares`.
        wavs: its waveforms.
        others: what else the loader gives, one entry for each further argument of `forward`.
    """

    task: str
    number: int
    wavs: list[Any]
    others: list[Any]

    @property
    def utterances(self) -> int:
        return len(self.wavs)

    @property
    def samples(self) -> int:
        return sum(len(wav) for wav in self.wavs)


class EpochReader:
    """The batches of one epoch of one expert that belong to some of its shares.

    An expert whose `get_dataloader` has `skip_batches`, `shares` and `num_shares` is asked for its
    shares. Any other knows s3prl's contract only: its whole loader is read, and batch i is kept
    if it belongs to one of the shares, i % num_shares. While such a loader is made and read, the
    global random generators are in a state that belongs to this epoch: its batches are a pure
    function of seed, task, split and epoch, the same for every process, and nothing that it draws
    is missing elsewhere.

    A loader worker that dies is replaced, and reading goes on with the very same batches.

    Args:
        task: its name, for errors.
        expert: has s3prl's `get_dataloader`.
        split: which split.
        seed: of the run.
        epoch: passed on where the loader takes it.
        shares: which shares are read, at least one.
        num_shares: shares that the epoch is cut into.
        first_round: rounds to leave out; a round is one batch of every share.
        training: rounds of equal size; otherwise evaluation, each batch by itself.

    Raises:
        UserError: the loader cannot be made, or its division among processes not be undone.
    """

    num_batches: int
    """Batches of the whole epoch over all shares; 0 where the loader does not say."""
    dropped: int
    """Utterances that were left out because they could not be decoded; known at the end."""
    utterances: int
    """Utterances of the split over all shares; 0 where the loader does not say."""

    def __init__(
        self,
        task: str,
        expert: Any,
        split: str,
        *,
        seed: int,
        epoch: int = 0,
        shares: Sequence[int] = (0,),
        num_shares: int = 1,
        first_round: int = 0,
        training: bool,
    ) -> None:
        if not shares:
            raise ValueError("no share to read")
        self.task = task
        self.expert = expert
        self.split = split
        self.seed = seed
        self.epoch = epoch
        # What is evaluated comes in the order of the split, as loaders of shares give it.
        self.shares = list(shares) if training else sorted(shares)
        self.num_shares = num_shares
        self.training = training
        self._by_shares = takes_shares(expert.get_dataloader)
        self._round_size = len(self.shares) if self._by_shares else num_shares
        self._done = first_round * self._round_size
        """Batches of the epoch, as far as this loader knows them, that are not needed again."""
        self.dropped = 0
        self._deaths = 0
        self._iterator: Iterator[Any] | None = None
        self._open()
        self.num_batches = self._count()
        self.utterances = getattr(self._loader, "utterances", 0)

    def next_round(self) -> list[Batch] | None:
        """The next batch of each of the shares, in the order of `shares`.

        Returns:
            fewer batches, or none, where the epoch of a loader without shares ends in the middle
            of a round; None when the epoch is over, for every share at the same time.
        """
        items = (self._next_batch() for _ in range(self._round_size))
        window = [batch for batch in items if batch is not None]
        if not window:
            return None
        own = [batch for batch in window if batch.number % self.num_shares in self.shares]
        return sorted(own, key=lambda batch: self.shares.index(batch.number % self.num_shares))

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch's batches of these shares, one by one."""
        while (batch := self._next_batch()) is not None:
            if batch.number % self.num_shares in self.shares:
                yield batch

    def _open(self) -> None:
        """Make the loader; reading it begins at the first batch that is still needed."""
        self._random = RandomStream(
            derived_seed("stream", self.seed, self.task, self.split, self.epoch)
        )
        get_dataloader = self.expert.get_dataloader
        arguments: dict[str, Any] = {}
        if accepts_argument(get_dataloader, "epoch"):
            arguments["epoch"] = self.epoch
        if self._by_shares:
            arguments["skip_batches"] = self._done
            arguments["shares"] = tuple(self.shares)
            arguments["num_shares"] = self.num_shares
        self._iterator = None
        with self._surroundings():
            self._loader = get_dataloader(self.split, **arguments)
            if not self._by_shares and isinstance(self._loader, DataLoader):
                undo_division(self._loader, self.task, self.epoch)
                init = self._loader.worker_init_fn
                if not isinstance(init, OutlivesStopSignals):
                    self._loader.worker_init_fn = OutlivesStopSignals(init)

    def _count(self) -> int:
        total = getattr(self._loader, "epoch_batches", None)
        if self._by_shares and total is not None:
            return int(total)
        try:
            length = len(self._loader) if isinstance(self._loader, Sized) else 0
        except (TypeError, NotImplementedError):
            # The loader of a dataset that can only be iterated has a length that only raises.
            return 0
        if not self._by_shares or len(self.shares) == self.num_shares:
            return length + (self._done if self._by_shares else 0)
        rounds = (length + self._done) // self._round_size
        return rounds * self.num_shares if self.training else 0

    def _next_batch(self) -> Batch | None:
        """The next batch of the loader, of whatever share; None at the end."""
        if self._loader is None:
            return None
        item = self._next_item()
        if item is _OVER:
            self.dropped += getattr(self._loader, "dropped", 0)
            # Its workers go with it.
            self._loader = self._iterator = None
            return None
        read = getattr(self._loader, "batches_read", None) if self._by_shares else None
        # Such a loader passes over batches of which nothing can be decoded, and counts them.
        self._done = self._done + 1 if read is None else self._skipped + read
        turn, place = divmod(self._done - 1, self._round_size)
        share = self.shares[place] if self._by_shares else place
        wavs, *others = item
        return Batch(self.task, turn * self.num_shares + share, list(wavs), others)

    def _next_item(self) -> Any:
        while True:
            try:
                with self._surroundings():
                    if self._iterator is None:
                        self._iterator = iter(self._loader)
                        self._skipped = self._done
                        had = 0 if self._by_shares else self._done
                        for _ in itertools.islice(self._iterator, had):
                            pass
                    item = next(self._iterator, _OVER)
                self._deaths = 0
                return item
            except (RuntimeError, OSError, EOFError) as error:
                if not self._is_worker_death(error):
                    raise
                self._count_death(error)
            self.dropped += getattr(self._loader, "dropped", 0)
            self._open()

    def _is_worker_death(self, error: Exception) -> bool:
        if isinstance(error, RuntimeError):
            return _DEATH.match(str(error)) is not None
        # A batch whose worker is gone cannot be fetched from it. An error that a worker met while
        # it was reading says that it was caught there.
        gone = isinstance(error, (ConnectionError, FileNotFoundError, EOFError))
        has_workers = getattr(self._loader, "num_workers", 0) > 0
        return gone and has_workers and not str(error).startswith("Caught ")

    def _count_death(self, error: Exception) -> None:
        self._deaths += 1
        cause = " ".join(str(error).split()) or type(error).__name__
        if self._deaths >= MAXIMUM_WORKER_DEATHS:
            raise UserError(
                f"{self.task}: workers that load the split {self.split!r} died {self._deaths} "
                f"times in a row: {cause.rstrip('.')}.",
                where=f"{self.task}.downstream_expert.datarc.num_workers",
                fix="Mostly memory is short: ask for more, set fewer num_workers, or enlarge "
                "/dev/shm.",
            ) from error
        logger.warning(
            "%s: a worker that loads the split %r died (%s). It is replaced and no batch is lost.",
            self.task,
            self.split,
            cause,
        )

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        with ExitStack() as stack:
            if not self._by_shares:
                stack.enter_context(self._random.in_place())
            stack.enter_context(deaths_are_met_when_reading())
            yield


@contextmanager
def deaths_are_met_when_reading() -> Iterator[None]:
    """Take back the SIGCHLD handler that torch installs when it starts loader workers.

    It raises RuntimeError wherever the main thread is at that moment, also in the middle of an
    optimizer's step. Without it, a loader finds out itself while it waits for a batch.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", "").startswith("torch.utils.data"):
        before = signal.SIG_DFL
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def undo_division(loader: DataLoader[Any], task: str, epoch: int) -> None:
    """Let a loader read everything whose sampler divides by torch's process group.

    Its samplers are also told the epoch, as s3prl's runner does.

    Args:
        loader: an expert's; it is changed.
        task: for errors.
        epoch: for the order of the sampler.

    Raises:
        UserError: it divides in a way that cannot be undone.
    """
    samplers = [loader.sampler, loader.batch_sampler]
    samplers.append(getattr(loader.batch_sampler, "sampler", None))
    for sampler in samplers:
        # torch and s3prl say num_replicas, lhotse world_size.
        for size in ("num_replicas", "world_size"):
            if getattr(sampler, size, 1) != 1:
                _make_whole(sampler, size, task)
        if callable(getattr(sampler, "set_epoch", None)):
            sampler.set_epoch(epoch)  # type: ignore[union-attr]


def _make_whole(sampler: Any, size: str, task: str) -> None:
    whole = {size: 1, "rank": 0}
    if isinstance(sampler, DistributedSampler):
        whole["num_samples"] = whole["total_size"] = len(sampler.dataset)  # type: ignore[arg-type]
    try:
        if hasattr(sampler, "num_samples") and "num_samples" not in whole:
            raise AttributeError("it was divided when it was made")
        for name, value in whole.items():
            setattr(sampler, name, value)
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{task}: its loader's {type(sampler).__name__} divides the epoch among processes by "
            f"itself, and that cannot be undone ({error}).",
            where=f"get_dataloader of {task}",
            fix="Return a loader of the whole split: the runner divides it.",
        ) from error


def takes_shares(get_dataloader: Callable[..., Any]) -> bool:
    """Whether it names the arguments with which a loader of some shares can be had."""
    # A method that swallows any keyword would swallow these too, and give everything.
    names = inspect.signature(get_dataloader).parameters
    return all(name in names for name in ("skip_batches", "shares", "num_shares"))


def accepts_argument(function: Callable[..., Any], name: str) -> bool:
    """Whether a function can be called with a keyword argument of that name."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
