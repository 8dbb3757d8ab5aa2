"""The ranks of one attempt meet in a store that may hold what earlier attempts left there."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence

import torch.distributed as dist

from s3prl_mtl.errors import UserError

PATIENCE_SECONDS = 1.0
"""How long the first rank waits for an answer to its plan before it makes another one."""
_POLL_SECONDS = 0.02


def meet(
    store: dist.Store, rank: int, size: int, timeout_seconds: float
) -> tuple[dist.Store, bool]:
    """A part of the store that the ranks of this attempt have for themselves.

    torchrun keeps one store for all its attempts, and agents on several machines need not count
    attempts alike: the one whose worker died counts a restart, the others only see that the group
    has changed. Without this, a rank would read the addresses of the dead and connect to them.

    Every rank says hello by a word that nobody has used before. The first rank makes a plan that
    repeats the hellos it saw; a rank that finds its own word in the plan knows that the plan is no
    older than itself, and agrees. When all agree the plan is made final.

    Args:
        store: of the rendezvous.
        rank: this process.
        size: how many ranks there are.
        timeout_seconds: how long to wait for all of them.

    Returns:
        the part of the store; and whether ranks have met in this store before, so that torchrun
        has started them again.

    Raises:
        UserError: not all have come in time; names those who are missing.
    """
    word = uuid.uuid4().hex
    place = dist.PrefixStore("meeting", store)
    place.set(f"hello/{rank}", word)
    deadline = time.monotonic() + timeout_seconds
    if rank == 0:
        return _lead(place, store, size, deadline, timeout_seconds)
    while time.monotonic() < deadline:
        if place.check(["plan"]):
            plan = json.loads(place.get("plan"))
            if plan["hellos"][rank : rank + 1] == [word]:
                place.set(f"agreed/{plan['name']}/{rank}", "yes")
                if place.check([f"final/{plan['name']}"]):
                    return dist.PrefixStore(plan["name"], store), plan["again"]
        time.sleep(_POLL_SECONDS)
    raise UserError(
        f"Rank 0 has not come to the rendezvous within {timeout_seconds:g} s, or has not heard of "
        "all ranks there.",
        where="torchrun",
        fix="Are all machines started, with the same --nnodes and rendezvous endpoint?",
    )


def _lead(
    place: dist.Store, store: dist.Store, size: int, deadline: float, timeout_seconds: float
) -> tuple[dist.Store, bool]:
    again = place.check(["plan"])
    while time.monotonic() < deadline:
        if not place.check([f"hello/{rank}" for rank in range(size)]):
            time.sleep(_POLL_SECONDS)
            continue
        name = uuid.uuid4().hex
        hellos = [place.get(f"hello/{rank}").decode() for rank in range(size)]
        place.set("plan", json.dumps({"name": name, "hellos": hellos, "again": again}))
        answers = [f"agreed/{name}/{rank}" for rank in range(1, size)]
        if _come(place, answers, min(deadline, time.monotonic() + PATIENCE_SECONDS)):
            place.set(f"final/{name}", "yes")
            return dist.PrefixStore(name, store), again
    missing = [rank for rank in range(size) if not place.check([f"hello/{rank}"])]
    raise UserError(
        f"Not all of the {size} ranks have come to the rendezvous within {timeout_seconds:g} s"
        + (f": {', '.join(map(str, missing))} are missing." if missing else "."),
        where="torchrun",
        fix="Are all machines started, with the same --nnodes and rendezvous endpoint?",
    )


def _come(place: dist.Store, keys: Sequence[str], deadline: float) -> bool:
    while not all(place.check([key]) for key in keys):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
