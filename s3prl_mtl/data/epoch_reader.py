"""Read one epoch of an expert by shares, even if its loader does not support shares."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from s3prl_mtl.data.randomness import RandomStream
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.data.workers import (
    StopSignalGuard,
    WorkerDeaths,
    block_sigterm,
    worker_deaths_raise,
)
from s3prl_mtl.errors import UserError

_END = object()


@dataclass
class Batch:
    """One batch of an expert, or some of its utterances.

    Args:
        task: name of the expert's task.
        number: in the epoch, over all shares; the share is `number % num_shares`.
        wavs: its waveforms.
        others: the other items of the batch, one for each further argument of `forward`.
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
    """The batches of some shares of one epoch of an expert.

    If `get_dataloader` has the arguments `skip_batches`, `shares` and `num_shares`, it is asked
    for the shares. Otherwise (s3prl's contract) the whole loader is read, and batch i belongs to
    share i % num_shares. Such a loader is created and read under a random state of its own
    (:class:`RandomStream`): its batches are a pure function of seed, task, split and epoch, equal
    in every process, and it does not advance the global generators.

    A loader worker that dies is replaced; reading continues with the same batches.

    Args:
        task: name of the task, for errors.
        expert: object with s3prl's `get_dataloader`.
        split: name of the split.
        seed: seed of the run.
        epoch: number of the epoch, passed to loaders that accept it.
        shares: the shares to read, at least one.
        num_shares: number of shares of the epoch.
        first_round: rounds to skip; a round is one batch of every share.
        training: rounds of equal size if true; otherwise evaluation, batch by batch.

    Raises:
        UserError: the loader cannot be created, or its division among processes cannot be undone.
    """

    num_batches: int
    """Batches of the epoch over all shares; 0 if the loader has no length."""
    dropped: int
    """Undecodable utterances; complete at the end of the epoch."""
    utterances: int
    """Utterances of the split over all shares; 0 if the loader does not tell."""

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
        # Evaluation keeps the order of the split, as `make_loader` does.
        self.shares = list(shares) if training else sorted(shares)
        self.num_shares = num_shares
        self.training = training
        self._by_shares = accepts_shares(expert.get_dataloader)
        self._round_size = len(self.shares) if self._by_shares else num_shares
        self._done = first_round * self._round_size
        """Batches of this loader that have been read or skipped."""
        self.dropped = 0
        self._deaths = WorkerDeaths(
            f"{task}, split {split!r}", f"{task}.downstream_expert.datarc.num_workers"
        )
        self._iterator: Iterator[Any] | None = None
        self._loader: Any = None
        self._open()
        self.num_batches = self._count()
        self.utterances = getattr(self._loader, "utterances", 0)

    def next_round(self) -> list[Batch] | None:
        """The next batch of each share, in the order of `shares`.

        Returns:
            One batch per share; fewer or none if a loader without shares ends within the round;
            None at the end of the epoch, in the same round for every share.
        """
        items = (self._next_batch() for _ in range(self._round_size))
        window = [batch for batch in items if batch is not None]
        if not window:
            return None
        own = [batch for batch in window if batch.number % self.num_shares in self.shares]
        return sorted(own, key=lambda batch: self.shares.index(batch.number % self.num_shares))

    def __iter__(self) -> Iterator[Batch]:
        """The remaining batches of these shares, one by one."""
        while (batch := self._next_batch()) is not None:
            if batch.number % self.num_shares in self.shares:
                yield batch

    def _open(self) -> None:
        """Create the loader, positioned at the first batch not yet read."""
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
        self._loader = self._iterator = None
        with self._loader_context():
            self._loader = get_dataloader(self.split, **arguments)
            if not self._by_shares and isinstance(self._loader, DataLoader):
                undo_sharding(self._loader, self.task, self.epoch)
                init = self._loader.worker_init_fn
                if not isinstance(init, StopSignalGuard):
                    self._loader.worker_init_fn = StopSignalGuard(init)

    def _count(self) -> int:
        total = getattr(self._loader, "epoch_batches", None)
        if self._by_shares and total is not None:
            return int(total)
        try:
            length = len(self._loader) if isinstance(self._loader, Sized) else 0
        except (TypeError, NotImplementedError):
            # The loader of an IterableDataset has a `__len__` that raises.
            return 0
        if not self._by_shares or len(self.shares) == self.num_shares:
            return length + (self._done if self._by_shares else 0)
        rounds = (length + self._done) // self._round_size
        return rounds * self.num_shares if self.training else 0

    def _next_batch(self) -> Batch | None:
        """The next batch of the loader, of any share; None at the end."""
        if self._loader is None:
            return None
        item = self._next_item()
        if item is _END:
            self.dropped += getattr(self._loader, "dropped", 0)
            # Ends its workers.
            self._loader = self._iterator = None
            return None
        read = getattr(self._loader, "batches_read", None) if self._by_shares else None
        # `EpochLoader` skips batches without decodable utterances, and counts them.
        self._done = self._done + 1 if read is None else self._skipped + read
        turn, place = divmod(self._done - 1, self._round_size)
        share = self.shares[place] if self._by_shares else place
        wavs, *others = item
        return Batch(self.task, turn * self.num_shares + share, list(wavs), others)

    def _next_item(self) -> Any:
        while True:
            try:
                with self._loader_context():
                    if self._iterator is None:
                        guarded = isinstance(self._loader, DataLoader)
                        with block_sigterm() if guarded else nullcontext():
                            self._iterator = iter(self._loader)
                        self._skipped = self._done
                        to_skip = 0 if self._by_shares else self._done
                        for _ in itertools.islice(self._iterator, to_skip):
                            pass
                    item = next(self._iterator, _END)
                self._deaths.count = 0
                return item
            except (RuntimeError, OSError, EOFError) as error:
                self._deaths.add(error, getattr(self._loader, "num_workers", 0))
            self.dropped += getattr(self._loader, "dropped", 0)
            self._open()

    def _reading(self) -> Any:
        """The iterator of the DataLoader, if any; that of an `EpochLoader` is within another."""
        return getattr(self._loader, "reading", None) or self._iterator

    @contextmanager
    def _loader_context(self) -> Iterator[None]:
        """Isolate the code of a loader from the random state and the signals of the process."""
        with ExitStack() as stack:
            if not self._by_shares:
                stack.enter_context(self._random.active())
            stack.enter_context(worker_deaths_raise(self._reading))
            yield


def undo_sharding(loader: DataLoader[Any], task: str, epoch: int) -> None:
    """Make samplers that divide the data by torch's process group read all of it.

    Also calls `set_epoch` on samplers, as s3prl's runner does.

    Args:
        loader: loader of an expert; modified in place.
        task: name of the task, for errors.
        epoch: number of the epoch.

    Raises:
        UserError: a sampler's division cannot be undone.
    """
    samplers = [loader.sampler, loader.batch_sampler]
    samplers.append(getattr(loader.batch_sampler, "sampler", None))
    for sampler in samplers:
        # `num_replicas` in torch and s3prl, `world_size` in lhotse.
        for size in ("num_replicas", "world_size"):
            if getattr(sampler, size, 1) != 1:
                _unshard(sampler, size, task)
        if callable(getattr(sampler, "set_epoch", None)):
            sampler.set_epoch(epoch)  # type: ignore[union-attr]


def _unshard(sampler: Any, size: str, task: str) -> None:
    attributes = {size: 1, "rank": 0}
    if isinstance(sampler, DistributedSampler):
        total = len(sampler.dataset)  # type: ignore[arg-type]
        attributes["num_samples"] = attributes["total_size"] = total
    try:
        if hasattr(sampler, "num_samples") and "num_samples" not in attributes:
            raise AttributeError("the division is fixed at construction")
        for name, value in attributes.items():
            setattr(sampler, name, value)
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{task}: the sampler of its loader divides the epoch among processes, which cannot be "
            f"undone ({error}).",
            where=f"{type(sampler).__name__} in get_dataloader of {task}",
            fix="Return a loader of the whole split; the runner divides it.",
            code="expert-invalid",
        ) from error


def accepts_shares(get_dataloader: Callable[..., Any]) -> bool:
    """Whether `get_dataloader` names the arguments for loading some shares."""
    # `**kwargs` do not count: such a method would ignore these and load everything.
    names = inspect.signature(get_dataloader).parameters
    return all(name in names for name in ("skip_batches", "shares", "num_shares"))


def accepts_argument(function: Callable[..., Any], name: str) -> bool:
    """Whether a function accepts a keyword argument of that name, possibly as `**kwargs`."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
