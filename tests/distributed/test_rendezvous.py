"""Ranks find each other in a store that earlier attempts have written to."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import timedelta

import pytest
import torch.distributed as dist

from s3prl_mtl.distributed.rendezvous import rendezvous
from tests.launcher import free_port
from tests.mistakes import user_error


@pytest.fixture
def stores():
    """Connections of four processes to one store."""
    port = free_port()
    wait = timedelta(seconds=20)
    server = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=wait)
    clients = [
        dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=wait)
        for _ in range(4)
    ]
    yield clients
    del server


def met(
    stores: Sequence[dist.Store], size: int, order: Sequence[int], again: bool = False
) -> list[dist.Store]:
    """The store of each rank for one attempt.

    Args:
        order: in which they come.
        again: the rendezvous has to be known as a restart.
    """
    answers: dict[int, tuple[dist.Store, bool]] = {}

    def come(rank: int) -> None:
        answers[rank] = rendezvous(stores[rank], rank, size, timeout_seconds=20)

    threads = []
    for rank in order:
        threads.append(threading.Thread(target=come, args=(rank,)))
        threads[-1].start()
    for thread in threads:
        thread.join(20)
    assert len(answers) == size, "a rank has no store"
    assert [answers[rank][1] for rank in range(size)] == [again] * size
    return [answers[rank][0] for rank in range(size)]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_every_attempt_has_its_own_part_of_the_store(stores, order):
    first = met(stores, 4, order)
    first[3].set("address", "of the dead")
    assert first[0].get("address") == b"of the dead", "they share it"
    second = met(stores, 4, order, again=True)
    assert not any(store.check(["address"]) for store in second)
    second[1].set("address", "new")
    assert second[2].get("address") == b"new"


def test_an_attempt_that_never_became_complete_does_not_mislead_the_next(stores):
    # Rank 1 of a dead attempt had come, and the plan of its rank 0 was never made final.
    stores[1].set("rendezvous/token/1", "a word of the dead")
    stores[0].set(
        "rendezvous/plan", json.dumps({"name": "old", "tokens": ["x", "a word of the dead"]})
    )
    stores[0].set("rendezvous/accepted/old/1", "yes")
    stores[0].set("rendezvous/final/old", "yes")
    first, second = met(stores, 2, (0, 1), again=True)
    first.set("key", "value")
    assert second.get("key") == b"value"
    assert not stores[0].check(["old/key"])


def test_a_smaller_attempt_follows_a_larger_one(stores):
    met(stores, 4, (0, 1, 2, 3))
    first, second = met(stores, 2, (1, 0), again=True)
    first.set("key", "value")
    assert second.get("key") == b"value"


def test_missing_ranks_are_named(stores):
    with user_error("launch-invalid", where=r"rank 1, 2$"):
        rendezvous(stores[0], 0, 3, timeout_seconds=0.3)
    with user_error("launch-invalid", where=r"rank 0$"):
        rendezvous(stores[1], 1, 3, timeout_seconds=0.3)
