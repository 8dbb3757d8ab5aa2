"""Placements: every share read once, ranks balanced, tasks on few ranks."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping

import pytest

from s3prl_mtl.distributed.shares import (
    LARGEST_EXCESS,
    Placement,
    balance_by_cost,
    data_parallel,
    loads,
    place_evenly,
)
from tests.mistakes import user_error

SUPERB = ["pr", "asr", "sf", "ks", "ic", "sid", "er", "sv", "sd"]


def check_complete(placement: Placement, tasks: list[str], world_size: int) -> None:
    """Every share of every task once, the queries agree, and no rank is idle."""
    assert placement.world_size == world_size
    assert list(placement.shares) == tasks
    for task in tasks:
        read = [share for rank in range(world_size) for share in placement.shares_of(task, rank)]
        assert sorted(read) == list(range(world_size))
        readers = tuple(r for r in range(world_size) if placement.shares_of(task, r))
        assert placement.ranks_of(task) == readers
    for rank in range(world_size):
        mine = [task for task in tasks if placement.shares_of(task, rank)]
        assert mine and placement.tasks_of(rank) == mine


def random_costs(seed: int) -> tuple[dict[str, float], int]:
    draw = random.Random(seed)
    world_size = draw.choice([1, 2, 3, 4, 5, 8, 16])
    scales = [draw.choice([0.01, 0.3, 1.0, 10.0]) for _ in range(draw.randint(1, 9))]
    costs = {f"t{i}": draw.uniform(0.5, 1.5) * scale for i, scale in enumerate(scales)}
    return costs, world_size


def test_data_parallel_gives_each_rank_its_share_of_every_task():
    placement = data_parallel(["pr", "asr"], 3)
    check_complete(placement, ["pr", "asr"], 3)
    assert all(
        placement.shares_of(task, rank) == (rank,) for task in placement.shares for rank in range(3)
    )


@pytest.mark.parametrize("seed", range(100))
def test_any_costs_are_balanced_within_fifteen_percent(seed: int):
    costs, world_size = random_costs(seed)
    placement = balance_by_cost(costs, world_size)
    check_complete(placement, list(costs), world_size)
    # The sum of the costs is the mean load, so nothing can have a smaller largest one.
    assert max(loads(placement, costs)) <= (1 + LARGEST_EXCESS) * sum(costs.values()) * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(100))
def test_the_ranks_of_a_task_have_equally_many_of_its_shares(seed: int):
    costs, world_size = random_costs(seed)
    placement = balance_by_cost(costs, world_size)
    for by_rank in placement.shares.values():
        sizes = [len(shares) for shares in by_rank.values()]
        assert max(sizes) - min(sizes) <= 1


def distributions(shares: int, ranks: int) -> Iterator[tuple[int, ...]]:
    """Every way in which ranks can have so many shares in all."""
    if ranks == 1:
        yield (shares,)
        return
    for first in range(shares + 1):
        for rest in distributions(shares - first, ranks - 1):
            yield (first, *rest)


def largest_load(costs: Mapping[str, float], counts: tuple[tuple[int, ...], ...]) -> float:
    return max(
        sum(cost * count[rank] for cost, count in zip(costs.values(), counts, strict=True))
        for rank in range(len(counts[0]))
    )


@pytest.mark.parametrize("world_size, num_tasks", [(1, 3), (2, 1), (2, 4), (3, 1), (3, 3), (4, 2)])
@pytest.mark.parametrize("seed", range(5))
def test_the_largest_load_is_within_the_bound_of_longest_first(
    world_size: int, num_tasks: int, seed: int
):
    draw = random.Random(seed)
    costs = {f"t{i}": draw.uniform(0.1, 5.0) for i in range(num_tasks)}
    every = distributions(world_size, world_size)
    optimum = min(
        largest_load(costs, counts) for counts in itertools.product(every, repeat=num_tasks)
    )
    reached = max(loads(balance_by_cost(costs, world_size), costs))
    assert optimum * (1 - 1e-12) <= reached
    bound = 4 / 3 - 1 / (3 * world_size)  # Graham 1969
    assert reached <= bound * optimum * (1 + 1e-12)


@pytest.mark.parametrize("world_size, num_tasks", [(2, 3), (2, 5), (3, 3), (4, 3)])
def test_hardly_more_experts_are_built_than_the_balance_needs(world_size: int, num_tasks: int):
    every = list(distributions(world_size, world_size))
    built = needed = 0
    for seed in range(4):
        draw = random.Random(seed)
        costs = {f"t{i}": draw.uniform(0.1, 2.0) for i in range(num_tasks)}
        placement = balance_by_cost(costs, world_size)
        built += sum(len(placement.ranks_of(task)) for task in costs)
        limit = (1 + LARGEST_EXCESS) * sum(costs.values())
        needed += min(
            sum(count > 0 for counts_of_task in counts for count in counts_of_task)
            for counts in itertools.product(every, repeat=num_tasks)
            if largest_load(costs, counts) <= limit
        )
    assert needed <= built <= 1.3 * needed


def test_with_nine_tasks_on_eight_ranks_few_are_divided_far():
    # All tasks laid end to end and cut at the ranks' loads make 9 + 7 pieces, were shares
    # divisible; data parallel has 72.
    built = []
    for seed in range(20):
        draw = random.Random(seed)
        costs = {task: draw.uniform(0.1, 3.0) for task in SUPERB}
        placement = balance_by_cost(costs, 8)
        built.append(sum(len(placement.ranks_of(task)) for task in SUPERB))
    assert sum(built) / len(built) <= 1.25 * 16
    assert max(built) <= 27


# Nine equal tasks are balanced only where each rank has nine shares. On 2 ranks ten and eight will
# do, and no task is cut; on 4, one is; on 16, each is at least once.
@pytest.mark.parametrize("world_size, experts", [(2, 9), (3, 9), (4, 10), (9, 9), (16, 24)])
def test_nine_equal_tasks_are_balanced_with_few_experts(world_size: int, experts: int):
    costs = dict.fromkeys(SUPERB, 0.3)
    placement = balance_by_cost(costs, world_size)
    check_complete(placement, SUPERB, world_size)
    assert max(loads(placement, costs)) <= 2.7 * (1 + LARGEST_EXCESS)
    assert sum(len(placement.ranks_of(task)) for task in SUPERB) == experts


def test_a_heavy_task_is_divided_and_the_light_ones_stay_whole():
    # A rank's fair load is 8 seconds; asr takes 16 of the 32, er 8, the others 4 each.
    costs = {"asr": 4.0, "ks": 1.0, "er": 2.0, "sd": 1.0}
    assert balance_by_cost(costs, 4).shares == {
        "asr": {0: (0, 1), 1: (2, 3)},
        "ks": {3: (0, 1, 2, 3)},
        "er": {2: (0, 1, 2, 3)},
        "sd": {3: (0, 1, 2, 3)},
    }


def test_a_single_task_is_on_every_rank():
    assert balance_by_cost({"asr": 2.5}, 4) == data_parallel(["asr"], 4)


def test_fewer_tasks_than_ranks_leave_no_rank_idle():
    costs = {"asr": 1.0, "ks": 1e-6}
    check_complete(balance_by_cost(costs, 7), ["asr", "ks"], 7)


def test_a_single_rank_reads_everything():
    placement = balance_by_cost({"asr": 3.0, "ks": 1.0}, 1)
    assert placement == data_parallel(["asr", "ks"], 1)


def test_many_ranks_leave_none_idle_where_the_tolerance_is_a_ranks_load():
    costs = {"asr": 1.0, "pr": 1.0, "ks": 0.01}
    check_complete(balance_by_cost(costs, 40), ["asr", "pr", "ks"], 40)


def test_ties_go_to_the_first_task_and_the_lowest_rank():
    assert balance_by_cost({"sd": 1.0, "asr": 1.0}, 2).shares == {
        "sd": {0: (0, 1)},
        "asr": {1: (0, 1)},
    }
    assert balance_by_cost({"asr": 1.0, "sd": 1.0}, 2).shares == {
        "asr": {0: (0, 1)},
        "sd": {1: (0, 1)},
    }


def test_the_unit_of_the_costs_does_not_matter():
    costs, world_size = random_costs(3)
    halved = {task: cost / 2 for task, cost in costs.items()}
    assert balance_by_cost(costs, world_size) == balance_by_cost(halved, world_size)


@pytest.mark.parametrize("cost", [0.0, -1.0, math.inf, math.nan])
def test_a_cost_that_is_not_positive_and_finite_is_refused(cost: float):
    with pytest.raises(ValueError, match="cost of ks"):
        balance_by_cost({"asr": 1.0, "ks": cost}, 2)


def test_no_tasks_are_refused():
    with pytest.raises(ValueError):
        balance_by_cost({}, 2)


def test_loads_are_the_seconds_of_all_shares_of_a_rank():
    placement = Placement(3, {"asr": {0: (0, 2), 1: (1,)}, "ks": {2: (0, 1, 2)}})
    assert loads(placement, {"asr": 2.0, "ks": 0.5}) == [4.0, 2.0, 1.5]


def test_a_task_of_several_ranks_is_divided_evenly():
    placement = place_evenly({"asr": [2, 0, 1], "pr": [4, 3], "ks": [0]}, 5)
    assert placement.shares == {
        "asr": {0: (0, 1), 1: (2, 3), 2: (4,)},
        "pr": {3: (0, 1, 2), 4: (3, 4)},
        "ks": {0: (0, 1, 2, 3, 4)},
    }


@pytest.mark.parametrize(
    "placement",
    [
        data_parallel(SUPERB, 3),
        balance_by_cost({"sv": 3.0, "ks": 0.2, "asr": 5.0}, 12),
        place_evenly({"lab:tones": [1], "asr": [0]}, 2),
    ],
)
def test_a_placement_survives_json(placement: Placement):
    text = json.dumps(placement.to_plain())
    again = Placement.from_plain(json.loads(text))
    assert again == placement
    assert list(again.shares) == list(placement.shares)
    assert again.tasks_of(1) == placement.tasks_of(1)


PLAIN = {"world_size": 2, "tasks": {"asr": {"0": [0], "1": [1]}}}


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        "0:asr",
        {},
        {**PLAIN, "world_size": "2"},
        {**PLAIN, "world_size": True},
        {**PLAIN, "world_size": 3},
        {**PLAIN, "world_size": 0},
        {**PLAIN, "tasks": {}},
        {**PLAIN, "tasks": ["asr"]},
        {**PLAIN, "tasks": {"asr": [[0], [1]]}},
        {**PLAIN, "tasks": {"asr": {"first": [0], "1": [1]}}},
        {**PLAIN, "tasks": {"asr": {"0": 0, "1": [1]}}},
        {**PLAIN, "tasks": {"asr": {"0": [0.0], "1": [1]}}},
        {**PLAIN, "tasks": {"asr": {"0": [0], "2": [1]}}},
    ],
)
def test_a_damaged_placement_is_refused(plain: object):
    with user_error("checkpoint-format"):
        Placement.from_plain(plain)


@pytest.mark.parametrize(
    "shares, message",
    [
        ({}, "at least one task"),
        ({"asr": {0: (0,)}}, "read"),
        ({"asr": {0: (0, 1), 1: (1,)}}, "read"),
        ({"asr": {0: (0,), 1: (2,)}}, "read"),
        ({"asr": {0: (1, 0)}}, "has the shares"),
        ({"asr": {0: (0, 1), 1: ()}}, "has the shares"),
        ({"asr": {0: (0,), -1: (1,)}}, "no rank -1"),
        ({"asr": {0: (0, 1)}, "ks": {0: (0, 1)}}, "nothing to read"),
    ],
)
def test_shares_that_are_not_each_read_once_are_refused(shares: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Placement(2, shares)


def test_a_placement_keeps_a_copy_of_its_shares():
    shares = {"asr": {1: (1,), 0: (0,)}}
    placement = Placement(2, shares)
    del shares["asr"][0]
    assert placement.shares == {"asr": {0: (0,), 1: (1,)}}
    assert placement.ranks_of("asr") == (0, 1)
