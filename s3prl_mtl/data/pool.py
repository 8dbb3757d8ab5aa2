"""The training batches of all tasks of a rank, read ahead by one pool of worker processes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, get_worker_info

from s3prl_mtl.data.batching import BatchSource
from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.data.streams import Round, TaskStream
from s3prl_mtl.data.transport import PackedBatch, pack
from s3prl_mtl.data.workers import (
    StopSignalGuard,
    WorkerDeaths,
    block_sigterm,
    worker_deaths_raise,
)
from s3prl_mtl.errors import UserError

_Draw = dict[str, tuple[Round, list[Any]]]
"""The next round of each task, and the contents of its batches."""


class LoaderPool:
    """The training batches of the tasks of a rank, draw by draw.

    A draw is the next round of every stream, or of some of them (`tasks_of`). Rounds are pure
    functions of seed and position, so the workers read whole draws ahead of the streams, each a
    draw of its own, and deliver them in order: the batches depend neither on the number of workers
    nor on what was read ahead. A worker that dies is replaced.

    Tasks whose expert has no `batch_source` are read by their own loaders, in the same draws.

    Args:
        streams: of the tasks, in the order of a draw.
        num_workers: processes; 0 reads in this one.
        doing: context manager for a description of the current activity.

    Attributes:
        number: of the next draw, from 0.
        tasks_of: the tasks of a draw, by its number; a pure function.
    """

    def __init__(
        self,
        streams: Sequence[TaskStream],
        num_workers: int = 0,
        doing: Callable[[str], AbstractContextManager[None]] = lambda what: nullcontext(),
    ) -> None:
        self.streams = streams
        self.num_workers = num_workers
        self.doing = doing
        self.number = 0
        names = [stream.task for stream in streams]
        self.tasks_of: Callable[[int], Collection[str]] = lambda number: names
        self._sources: dict[str, BatchSource] | None = None
        self._reading: list[Iterator[Any]] = []
        """The iterator of the loader, or nothing. Not an attribute: collected together with this
        object in a reference cycle, its queues would be closed first, and each worker would end
        after a timeout."""
        weakref.finalize(self, _end, self._reading).atexit = False
        self._position: Any = None
        """The position at which the iterator continues."""
        self._deaths = WorkerDeaths("The training splits", "runner.num_workers (--num_workers)")

    def draw(self) -> list[Batch]:
        """The next batch of every share of every task of a draw, in the order of the tasks.

        Raises:
            UserError: a batch cannot be read, or workers die repeatedly.
        """
        with self.doing("reading the batches of a step"):
            read = self._next_draw()
        batches = []
        wanted = self.tasks_of(self.number)
        for stream in self.streams:
            if stream.task not in wanted:
                continue
            if stream.task in read:
                batches += stream.take(*read[stream.task])
                continue
            with self.doing(f"reading a batch of {stream.task}"):
                batches += stream.next_round()
        self.number += 1
        self._position = self._current()
        return batches

    def close(self) -> None:
        """End the workers. The next draw starts them again."""
        _end(self._reading)

    def _next_draw(self) -> _Draw:
        if self._sources is None:
            self._sources = self._offered()
        if not self._sources:
            return {}
        if self._position != self._current():
            self.close()  # The run was set to another position.
        while True:
            try:
                with worker_deaths_raise(lambda: self._reading[0] if self._reading else None):
                    if not self._reading:
                        self._position = self._current()
                        with block_sigterm():
                            self._reading.append(iter(self._loader(self._sources)))
                    sent = next(self._reading[0])
                if isinstance(sent, UserError):
                    raise sent
            except Exception as error:
                self.close()
                self._deaths.add(error, self.num_workers)
                continue
            self._deaths.count = 0
            return sent.unpack() if isinstance(sent, PackedBatch) else sent

    def _offered(self) -> dict[str, BatchSource]:
        """The sources of the tasks that have one."""
        sources = {}
        for stream in self.streams:
            batch_source = getattr(stream.expert, "batch_source", None)
            with self.doing(f"opening the training data of {stream.task}"):
                source = batch_source(stream.split) if batch_source is not None else None
            if source is not None:
                sources[stream.task] = source
        return sources

    def _current(self) -> Any:
        pooled = self._sources or {}
        return self.number, [(s.epoch, s.round) for s in self.streams if s.task in pooled]

    def _loader(self, sources: Mapping[str, BatchSource]) -> DataLoader[_Draw]:
        ahead = {s.task: s.ahead(sources[s.task]) for s in self.streams if s.task in sources}
        return DataLoader(
            _DrawDataset(sources),
            sampler=_draws(ahead, self.tasks_of, self.number),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self.num_workers,
            # Containers have little shared memory: a worker begins with another draw when one of
            # its own is taken, but a single worker would then idle.
            prefetch_factor={0: None, 1: 2}.get(self.num_workers, 1),
            worker_init_fn=StopSignalGuard(),
            # By default DataLoader draws the seed of its workers from the global state.
            generator=torch.Generator(),
        )


class _DrawDataset(Dataset[Any]):
    """Draws of several tasks, indexed by their rounds."""

    def __init__(self, sources: Mapping[str, BatchSource]) -> None:
        self.sources = sources

    def __getitem__(
        self, rounds: Sequence[Round]
    ) -> _Draw | PackedBatch | UserError | ExceptionWrapper:
        if get_worker_info() is None:
            return {read.task: (read, self._items(read)) for read in rounds}
        draw = {}
        for read in rounds:
            try:
                draw[read.task] = read, self._items(read)
            except UserError as error:
                # Returned, not raised: DataLoader would turn it into text with a traceback.
                return error
            except Exception:
                # DataLoader does the same, without the task.
                return ExceptionWrapper(where=f"in a loader worker that was reading {read.task}")
        return pack(draw)

    def _items(self, read: Round) -> list[Any]:
        source = self.sources[read.task]
        return [source.load(read.epoch, draws).batch for draws in read.draws]


def _end(reading: list[Iterator[Any]]) -> None:
    """End the workers of an iterator."""
    for iterator in reading:
        # Else they end with its last reference, perhaps in the traceback of an error. torch has no
        # public way.
        end = getattr(iterator, "_shutdown_workers", None)
        if end is not None:
            end()
    reading.clear()


def _draws(
    ahead: Mapping[str, Iterator[Round]],
    tasks_of: Callable[[int], Collection[str]],
    number: int,
) -> Iterator[list[Round]]:
    """The rounds of every draw from this one on, without end."""
    while True:
        wanted = tasks_of(number)
        yield [next(rounds) for task, rounds in ahead.items() if task in wanted]
        number += 1


def _unchanged(sent: Any) -> Any:
    return sent
