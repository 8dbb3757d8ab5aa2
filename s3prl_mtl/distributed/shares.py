"""Placement: the shares of every task that each rank reads."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3prl_mtl.errors import UserError

LARGEST_EXCESS = 0.15
"""Largest excess of a rank's load over the mean load, as a fraction of the mean.

An excess keeps tasks whole: a head on one more rank costs memory, an update and a sum of its
gradients there, and the batches of a task differ by more than this from step to step.
"""


@dataclass(frozen=True)
class Placement:
    """The shares of every task, divided over the ranks.

    An epoch of a task is cut into `world_size` equal shares, and a step takes one batch of each,
    so that a step is the same utterances wherever they are read.

    Attributes:
        world_size: how many ranks there are, and shares of each task.
        shares: {task: {rank: shares}}, tasks in the run's order, ranks and shares ascending; every
            share of a task exactly once, no rank without any. A rank that has none of a task's
            shares is not listed there and need not build its expert.

    Raises:
        ValueError: the shares are divided in another way.
    """

    world_size: int
    shares: Mapping[str, Mapping[int, tuple[int, ...]]]

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"a placement needs at least one rank, not {self.world_size}")
        if not self.shares:
            raise ValueError("a placement needs at least one task")
        everything = list(range(self.world_size))
        ordered: dict[str, dict[int, tuple[int, ...]]] = {}
        for task, by_rank in self.shares.items():
            ordered[task] = {rank: tuple(by_rank[rank]) for rank in sorted(by_rank)}
            for rank, shares in ordered[task].items():
                if rank not in everything:
                    raise ValueError(f"{task}: there is no rank {rank} of {self.world_size}")
                if not shares or list(shares) != sorted(shares):
                    raise ValueError(f"{task}: rank {rank} has the shares {shares}")
            read = sorted(share for shares in ordered[task].values() for share in shares)
            if read != everything:
                raise ValueError(f"{task}: of {self.world_size} shares the ranks read {read}")
        idle = set(everything).difference(*ordered.values())
        if idle:
            raise ValueError(f"ranks {sorted(idle)} have nothing to read")
        # A copy, so that nobody changes what was checked.
        object.__setattr__(self, "shares", ordered)

    def tasks_of(self, rank: int) -> list[str]:
        """The tasks that a rank has shares of, in the run's order."""
        return [task for task, by_rank in self.shares.items() if rank in by_rank]

    def ranks_of(self, task: str) -> tuple[int, ...]:
        """The ranks that have shares of a task, ascending."""
        return tuple(self.shares[task])

    def shares_of(self, task: str, rank: int) -> tuple[int, ...]:
        """The shares of a task that a rank reads, ascending; none where it has none."""
        return self.shares[task].get(rank, ())

    def to_plain(self) -> dict[str, Any]:
        """The plain values for JSON and checkpoints."""
        tasks = {
            task: {str(rank): list(shares) for rank, shares in by_rank.items()}
            for task, by_rank in self.shares.items()
        }
        return {"world_size": self.world_size, "tasks": tasks}

    @classmethod
    def from_plain(cls, plain: Any) -> Placement:
        """The inverse of `to_plain`.

        Raises:
            UserError: the value is not a placement, or shares are missing or given twice.
        """
        try:
            world_size = _whole_number(plain["world_size"])
            shares = {
                str(task): {
                    int(rank): tuple(_whole_number(share) for share in shares)
                    for rank, shares in by_rank.items()
                }
                for task, by_rank in plain["tasks"].items()
            }
            return cls(world_size, shares)
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise UserError(
                f"The saved placement is damaged ({type(cause).__name__}: {cause}).",
                code="checkpoint-format",
            ) from None


def data_parallel(tasks: Sequence[str], world_size: int) -> Placement:
    """Data parallel: every rank reads its own share of every task."""
    return Placement(
        world_size, {task: {rank: (rank,) for rank in range(world_size)} for task in tasks}
    )


def balance_by_cost(costs: Mapping[str, float], world_size: int) -> Placement:
    """Balance the ranks, with each task on as few of them as that allows.

    Longest processing time first (Graham 1969): the largest part goes to the rank with the least
    load. A rank may have up to 1.15 times the mean load. At first a task is one part, or the
    least number of parts that are each below this limit. While a rank is above the limit, one of
    its tasks is divided into one more part: the task that reduces the highest loads most. This
    ends at the latest with one part for every share, the same load on every rank.

    Args:
        costs: {task: seconds that one batch takes}, in the run's order. Ties go to the first
            task and to the lowest rank, so every process finds the same placement.
        world_size: the number of ranks.

    Returns:
        a placement in which the parts of a task differ by one share at most, no two of them on one
        rank, and no rank has more than 1.15 times the sum of the costs.

    Raises:
        ValueError: no task, or a cost that is not finite and above zero.
    """
    for task, cost in costs.items():
        if not (math.isfinite(cost) and cost > 0):
            raise ValueError(f"the cost of {task} is {cost}")
    fair = math.fsum(costs.values())
    if not costs or not math.isfinite(fair * world_size):
        raise ValueError(f"no placement for a total cost of {fair}")
    most = (1 + LARGEST_EXCESS) * fair
    # Rounding must not divide a task whose load is just the largest one that there may be.
    parts = {
        task: min(world_size, max(1, math.ceil(world_size * cost / most - 1e-9)))
        for task, cost in costs.items()
    }
    attempt = _longest_first(costs, parts, world_size)
    while attempt.highest > most or attempt.idle:
        busiest = attempt.loads.index(attempt.highest)
        # There is one: with all tasks divided into single shares the ranks have equal loads.
        candidates = [
            task for task in costs if busiest in attempt.sizes[task] and parts[task] < world_size
        ]
        attempts = [
            (_longest_first(costs, {**parts, task: parts[task] + 1}, world_size), task)
            for task in candidates
        ]
        attempt, divided = min(attempts, key=lambda tried: sorted(tried[0].loads, reverse=True))
        parts[divided] += 1
    return Placement(
        world_size, {task: _consecutive(sizes) for task, sizes in attempt.sizes.items()}
    )


def place_evenly(ranks: Mapping[str, Sequence[int]], world_size: int) -> Placement:
    """Divide each task evenly among some ranks; the lowest of them read one share more, if any.

    Args:
        ranks: of each task, in the run's order.
        world_size: the number of ranks.
    """
    return Placement(
        world_size,
        {
            task: _consecutive(dict(zip(sorted(homes), _even(world_size, len(homes)), strict=True)))
            for task, homes in ranks.items()
        },
    )


def loads(placement: Placement, costs: Mapping[str, float]) -> list[float]:
    """The seconds that the batches of one step take on each rank.

    Args:
        placement: of the tasks in `costs`.
        costs: {task: seconds that one batch takes}.
    """
    return [
        math.fsum(
            costs[task] * len(placement.shares_of(task, rank)) for task in placement.tasks_of(rank)
        )
        for rank in range(placement.world_size)
    ]


@dataclass(frozen=True)
class _Attempt:
    loads: list[float]  # seconds of each rank
    sizes: dict[str, dict[int, int]]  # task -> rank -> how many shares

    @property
    def highest(self) -> float:
        return max(self.loads)

    @property
    def idle(self) -> bool:
        return min(self.loads) == 0


def _longest_first(
    costs: Mapping[str, float], parts: Mapping[str, int], world_size: int
) -> _Attempt:
    """Place the parts of all tasks, the one that takes longest first."""
    ordered = [
        (cost * size, size, task)
        for task, cost in costs.items()
        for size in _even(world_size, parts[task])
    ]
    ordered.sort(key=lambda part: -part[0])  # stable: ties stay in the order of the tasks
    queue = [(0.0, rank) for rank in range(world_size)]
    sizes: dict[str, dict[int, int]] = {task: {} for task in costs}
    for seconds, size, task in ordered:
        passed = []
        while queue[0][1] in sizes[task]:
            passed.append(heapq.heappop(queue))
        _, rank = heapq.heapreplace(queue, (queue[0][0] + seconds, queue[0][1]))
        sizes[task][rank] = size
        for other in passed:
            heapq.heappush(queue, other)
    by_rank = sorted((rank, load) for load, rank in queue)
    return _Attempt([load for _, load in by_rank], sizes)


def _even(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers as equal as possible, the larger ones first."""
    smaller, larger = divmod(total, parts)
    return [smaller + 1] * larger + [smaller] * (parts - larger)


def _consecutive(sizes: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """Numbered shares for each rank, from how many it has."""
    shares: dict[int, tuple[int, ...]] = {}
    first = 0
    for rank in sorted(sizes):
        shares[rank] = tuple(range(first, first + sizes[rank]))
        first += sizes[rank]
    return shares


def _whole_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value
