"""The processes of a run, and what they say to each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from s3prl_mtl.distributed.health import SILENT_BEATS, Watch
from s3prl_mtl.distributed.rendezvous import meet
from s3prl_mtl.errors import SharedMistake, UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_TIMEOUT_SECONDS = 1800.0
"""How long a rank waits for the others before it gives up; torch's own default for gloo."""

MAXIMUM_STALL_SECONDS = 60.0
"""How long a rank waits for the others before its log names those that it waits for."""


class RankLost(RuntimeError):
    """Another process of the run is gone or hangs, so this one cannot go on.

    Args:
        text: names it.
        spoken_for: a rank that lives tells the user: this one need not.
    """

    def __init__(self, text: str, spoken_for: bool = False) -> None:
        super().__init__(text)
        self.spoken_for = spoken_for


class OtherRankFailed(RuntimeError):
    """Another rank met a failure of the program, and all ranks know."""


class Group:
    """Some of the ranks of a run, this one among them. A group of one says nothing to anybody.

    Args:
        ranks: ascending.
        rank: this process.
        handle: torch's group; None for a group of one.
        watch: tells the other ranks what this one does; None in a world of one.

    Every operation must be called by all ranks of the group, in the same order.

    Raises:
        RankLost: (every operation) one of the ranks is gone, or the timeout has passed.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        rank: int,
        handle: dist.ProcessGroup | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.ranks = tuple(ranks)
        self.rank = rank
        self.handle = handle
        self.watch = watch

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def index(self) -> int:
        """The place of this process among the group's."""
        return self.ranks.index(self.rank)

    @property
    def is_lead(self) -> bool:
        """Whether this is the first of the ranks: the one that gathers and writes."""
        return self.rank == self.ranks[0]

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over the ranks, the same bits on all of them; in place."""
        if self.size > 1:
            with self._waiting():
                dist.all_reduce(values, group=self.handle)
        return values

    def start_sum(self, values: Tensor) -> Callable[[], None]:
        """Begin a sum in place; what is returned waits for its end."""
        with self._waiting():
            work = dist.all_reduce(values, group=self.handle, async_op=True)
        assert work is not None

        def wait() -> None:
            with self._waiting():
                work.wait()

        return wait

    def gather(self, value: T) -> list[T] | None:
        """What each rank gave, in their order, on the lead; None on the others."""
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.is_lead else None
        with self._waiting():
            dist.gather_object(value, gathered, dst=self.ranks[0], group=self.handle)
        return gathered

    def all_gather(self, value: T) -> list[T]:
        """What each rank gave, in their order, on all of them."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(gathered, value, group=self.handle)
        return gathered

    def broadcast(self, value: T) -> T:
        """What the lead gave."""
        if self.size == 1:
            return value
        held: list[Any] = [value if self.is_lead else None]
        with self._waiting():
            dist.broadcast_object_list(held, src=self.ranks[0], group=self.handle)
        return held[0]

    def doing(self, what: str) -> AbstractContextManager[None]:
        """Let the other ranks know what this one is busy with, should they wait for it."""
        return self.watch.doing(what) if self.watch is not None else nullcontext()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        assert self.watch is not None
        with self.watch.doing("waiting for the other ranks", waiting=True):
            try:
                yield
            except RuntimeError as error:  # torch has no narrower class for gloo's errors
                culprit = self.watch.blame(error)
                raise RankLost(
                    f"{culprit} Rank {self.rank} stops; `-a` goes on from the last checkpoint, and "
                    "a longer --timeout waits longer.",
                    spoken_for=self.watch.speaker != self.rank,
                ) from error


class World(Group):
    """All ranks of a run.

    Use it as a context: when a rank leaves by an error, the others learn its reason.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        watch: Watch | None = None,
    ) -> None:
        handle = dist.group.WORLD if size > 1 else None
        super().__init__(range(size), rank, handle, watch)
        self.local_rank = local_rank
        """Which of the processes of this machine this is."""
        self.restarted = False
        """Whether torchrun has started these processes again, after one of them had failed."""
        self._timeout: timedelta | None = None
        self._groups: dict[tuple[int, ...], Group | None] = {self.ranks: self}

    @classmethod
    def alone(cls) -> World:
        """A world of one process.

        Raises:
            UserError: torchrun started several, which would train apart from each other.
        """
        if _number_from_environment("WORLD_SIZE", 1) > 1:
            raise UserError(
                "torchrun started several processes, and each of them would train for itself.",
                where="MultiTaskRunner(...)",
                fix="Let them meet: with World.join() as world: MultiTaskRunner(..., world=world).",
            )
        return cls()

    @classmethod
    def join(
        cls, backend: str | None = None, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    ) -> World:
        """Meet the other processes that torchrun started; a world of one where it started none.

        Args:
            backend: `gloo`, or `nccl` for tensors on a GPU; by default nccl where there is a GPU.
                What lies on the CPU always goes through gloo.
            timeout_seconds: how long a rank waits for the others.

        Raises:
            UserError: a backend that is not there, or an incomplete environment.
        """
        size = _number_from_environment("WORLD_SIZE", 1)
        restarts = _number_from_environment("TORCHELASTIC_RESTART_COUNT", 0)
        if size == 1:
            world = cls()
            world.restarted = restarts > 0
            return world
        rank = _number_from_environment("RANK", None)
        has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
        if backend == "nccl" and not has_nccl:
            raise UserError(
                "nccl needs a GPU, and a torch that is built for it.",
                where="--backend nccl",
                fix="Leave it out, or take gloo.",
            )
        over_gpus = has_nccl and backend != "gloo"
        timeout = timedelta(seconds=timeout_seconds)
        found, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        found.set_timeout(timeout)
        store, again = meet(found, rank, size, timeout_seconds)
        # A rank that stalls is named well before the others give up waiting for it. When they do,
        # it takes them some beats to find out who it was: all of it within the timeout.
        stall_seconds = min(MAXIMUM_STALL_SECONDS, timeout_seconds / 3)
        beat_seconds = min(2.0, stall_seconds / 6)
        collectives = timedelta(seconds=timeout_seconds - 2 * SILENT_BEATS * beat_seconds)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if over_gpus else "gloo",
            store=dist.PrefixStore("ranks", store),
            rank=rank,
            world_size=size,
            timeout=collectives,
        )
        watch = Watch(
            dist.PrefixStore("watch", store),
            rank,
            size,
            beat_seconds=beat_seconds,
            stall_seconds=stall_seconds,
        )
        watch.start()
        world = cls(rank, size, _number_from_environment("LOCAL_RANK", 0), watch)
        world._timeout = collectives
        # An agent counts the restarts that its own workers caused; those that it only took part in
        # show in the store alone.
        world.restarted = again or max(world.all_gather(restarts)) > 0
        return world

    def group(self, ranks: Sequence[int]) -> Group | None:
        """The group of some ranks; None if this one is not among them. All ranks must call it."""
        key = tuple(sorted(ranks))
        if len(key) == 1:
            return Group(key, self.rank, watch=self.watch) if key[0] == self.rank else None
        if key not in self._groups:
            # torch wants every rank to take part in making a group, members or not.
            handle = dist.new_group(list(key), timeout=self._timeout)
            member = self.rank in key
            self._groups[key] = Group(key, self.rank, handle, self.watch) if member else None
        return self._groups[key]

    def run_on_all_ranks(self, action: Callable[[], T]) -> T:
        """Do something on every rank; an error that shows on one of them is raised on all.

        Raises:
            UserError: of any rank.
            OtherRankFailed: any other error of another rank; that rank raises the error itself.
        """
        if self.size == 1:
            return action()
        error: Exception | None = None
        try:
            result = action()
        except Exception as caught:
            error = caught
        self.raise_on_all_ranks(error)
        return result

    def raise_on_all_ranks(self, error: Exception | None) -> None:
        """Raise on all ranks what happened on any of them; nothing if nothing did.

        Raises:
            UserError, OtherRankFailed: as :meth:`together`.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return
        told = None if error is None else (isinstance(error, UserError), str(error))
        said = self.all_gather(told)
        distinct: dict[str, list[int]] = {}
        for rank, entry in enumerate(said):
            if entry is None:
                continue
            is_mistake, text = entry
            if not is_mistake:
                if error is not None:
                    raise error
                raise OtherRankFailed(f"Rank {rank} failed: {text or 'see its log'}.")
            distinct.setdefault(text, []).append(rank)
        if len(distinct) == 1 and None not in said:
            raise SharedMistake(next(iter(distinct))) from error
        if distinct:
            raise SharedMistake(
                " ".join(f"On rank {_listed(ranks)}: {text}" for text, ranks in distinct.items())
            ) from error

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.watch is None:
            return
        if error is not None and not isinstance(error, RankLost | OtherRankFailed | SharedMistake):
            text = (str(error).splitlines() or [""])[0]
            known = isinstance(error, UserError)
            self.watch.fail(text if known else f"{type(error).__name__}: {text}")
        self.watch.close()
        if error is None or isinstance(error, KeyboardInterrupt):
            # Threads that torch still has at the end of the process may abort it, which would make
            # a failure of an orderly end. After other errors the ranks may be gone, and torch would
            # wait for them.
            dist.destroy_process_group()


def _number_from_environment(name: str, default: int | None) -> int:
    text = os.environ.get(name) or (None if default is None else str(default))
    if text is None or not text.isdigit():
        raise UserError(
            f"${name} is {text!r} while $WORLD_SIZE is set.",
            where="the environment",
            fix="Start with torchrun, which sets both, or unset WORLD_SIZE.",
        )
    return int(text)


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(str(rank) for rank in ranks)
