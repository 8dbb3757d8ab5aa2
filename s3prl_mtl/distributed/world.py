"""The processes of a run, and the collective operations between them."""

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

from s3prl_mtl.distributed import DEFAULT_TIMEOUT_SECONDS
from s3prl_mtl.distributed.health import SILENT_HEARTBEATS, Watch, watch_intervals
from s3prl_mtl.distributed.rendezvous import rendezvous
from s3prl_mtl.errors import RankLost, SharedMistake, UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class OtherRankFailed(RuntimeError):
    """Another rank failed with an error of the program; raised on all other ranks."""


class Group:
    """Some of the ranks of a run, this one among them. A group of one does not communicate.

    Args:
        ranks: ascending.
        rank: this process.
        handle: torch's group; None for a group of one.
        watch: tells the other ranks the activity of this one; None in a world of one.

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
        """The position of this process within the group."""
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
        """Start a sum in place.

        Returns:
            a function that waits for the result.
        """
        with self._waiting():
            work = dist.all_reduce(values, group=self.handle, async_op=True)
        assert work is not None

        def wait() -> None:
            with self._waiting():
                work.wait()

        return wait

    def gather(self, value: T) -> list[T] | None:
        """The values of all ranks, in their order, on the lead; None on the others."""
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.is_lead else None
        with self._waiting():
            dist.gather_object(value, gathered, dst=self.ranks[0], group=self.handle)
        return gathered

    def all_gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(gathered, value, group=self.handle)
        return gathered

    def broadcast(self, value: T) -> T:
        """The value of the lead."""
        if self.size == 1:
            return value
        held: list[Any] = [value if self.is_lead else None]
        with self._waiting():
            dist.broadcast_object_list(held, src=self.ranks[0], group=self.handle)
        return held[0]

    def doing(self, what: str) -> AbstractContextManager[None]:
        """Name the activity of this rank, for the others in case they have to wait for it."""
        return self.watch.doing(what) if self.watch is not None else nullcontext()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        assert self.watch is not None
        with self.watch.doing("waiting for the other ranks", waiting=True):
            try:
                yield
            except RuntimeError as error:  # torch has no narrower class for gloo's errors
                fault = self.watch.find_fault(error)
                raise RankLost(
                    f"{fault.text} Rank {self.rank} stops. Resume from the last checkpoint with "
                    "-a; a larger --timeout waits longer.",
                    spoken_for=self.watch.speaker != self.rank,
                ) from error


class World(Group):
    """All ranks of a run.

    Use it as a context manager: the reason of an error on one rank then reaches the others.
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
        """The number of this process among those of its machine."""
        self.local_size = 1
        """The number of processes on this machine."""
        self.restarted = False
        """Whether torchrun restarted these processes after a failure."""
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
                "torchrun started several processes, but the runner was given no world.",
                where="MultiTaskRunner(...)",
                fix="Join them: with World.join() as world: MultiTaskRunner(..., world=world).",
                code="launch-invalid",
            )
        return cls()

    @classmethod
    def join(
        cls, backend: str | None = None, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    ) -> World:
        """Join the processes that torchrun started; without torchrun a world of one.

        Args:
            backend: `gloo`, or `nccl` for tensors on a GPU; by default nccl where there is a GPU.
                CPU tensors always go through gloo.
            timeout_seconds: how long a rank waits for the others.

        Raises:
            UserError: the backend is not available, or the environment of torchrun is incomplete.
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
                "nccl is not available: it needs a GPU and a build of torch with nccl.",
                where="--backend nccl",
                fix="Omit the flag, or use gloo.",
                code="device-unavailable",
            )
        over_gpus = has_nccl and backend != "gloo"
        timeout = timedelta(seconds=timeout_seconds)
        found, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        found.set_timeout(timeout)
        store, again = rendezvous(found, rank, size, timeout_seconds)
        # Finding out which rank is stalled takes some heartbeats, within the timeout.
        heartbeat_seconds, stall_seconds = watch_intervals(timeout_seconds)
        collectives = timedelta(seconds=timeout_seconds - 2 * SILENT_HEARTBEATS * heartbeat_seconds)
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
            heartbeat_seconds=heartbeat_seconds,
            stall_seconds=stall_seconds,
        )
        watch.start()
        world = cls(rank, size, _number_from_environment("LOCAL_RANK", 0), watch)
        world.local_size = _number_from_environment("LOCAL_WORLD_SIZE", 1)
        world._timeout = collectives
        # An agent counts only the restarts that its own workers caused; the store shows the others.
        world.restarted = again or max(world.all_gather(restarts)) > 0
        return world

    def group(self, ranks: Sequence[int]) -> Group | None:
        """The group of some ranks; None if this one is not in it. All ranks must call it."""
        key = tuple(sorted(ranks))
        if len(key) == 1:
            return Group(key, self.rank, watch=self.watch) if key[0] == self.rank else None
        if key not in self._groups:
            # torch requires that all ranks create a group, members or not.
            handle = dist.new_group(list(key), timeout=self._timeout)
            member = self.rank in key
            self._groups[key] = Group(key, self.rank, handle, self.watch) if member else None
        return self._groups[key]

    def run_on_all_ranks(self, action: Callable[[], T]) -> T:
        """Run an action on every rank; an error of one rank is raised on all.

        Raises:
            UserError: any rank raised it.
            OtherRankFailed: another rank raised another error; that rank raises the error itself.
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
        """Raise an error of any rank on all of them; return if there is none.

        Raises:
            UserError, OtherRankFailed: as :meth:`run_on_all_ranks`.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return
        own: tuple[str | None, ...] | str | None = None if error is None else str(error)
        if isinstance(error, UserError):
            own = (error.what, error.where, error.fix, error.code)
        mistakes: dict[tuple[Any, ...], list[int]] = {}
        errors = self.all_gather(own)
        for rank, entry in enumerate(errors):
            if isinstance(entry, str):
                if error is not None:
                    raise error
                raise OtherRankFailed(f"Rank {rank} failed: {entry or 'see its log'}.")
            if entry is not None:
                mistakes.setdefault(entry, []).append(rank)
        if not mistakes:
            return
        shared = []
        for (what, where, fix, code), ranks in mistakes.items():
            if len(ranks) < self.size:
                what = f"On rank {', '.join(map(str, ranks))}: {what}"
            shared.append(SharedMistake(what, where=where, fix=fix, code=code))
        if len(shared) > 1:
            # Without a place of its own: every mistake has one.
            raise SharedMistake(" ".join(map(str, shared)), code="several") from error
        raise shared[0] from error

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
            # Threads of torch that still run at the end of the process may abort it, and a clean
            # exit would become a failure. After other errors the ranks may be gone, and torch would
            # wait for them.
            dist.destroy_process_group()


def _number_from_environment(name: str, default: int | None) -> int:
    text = os.environ.get(name) or (None if default is None else str(default))
    if text is None or not text.isdigit():
        raise UserError(
            f"${name} is {text!r} while $WORLD_SIZE is set.",
            where=f"the environment variable {name}",
            fix="Start with torchrun, which sets both, or unset WORLD_SIZE.",
            code="launch-invalid",
        )
    return int(text)
