"""Rendezvous of the ranks of one attempt, in a store with leftovers of earlier attempts."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence

import torch.distributed as dist

from s3prl_mtl.errors import UserError

PATIENCE_SECONDS = 1.0
"""Timeout of the answers to a plan, after which the first rank publishes another one."""
_POLL_SECONDS = 0.02


def rendezvous(
    store: dist.Store, rank: int, size: int, timeout_seconds: float
) -> tuple[dist.Store, bool]:
    """A part of the store that only the ranks of this attempt use.

    torchrun keeps one store for all its attempts, and agents on several machines may count attempts
    differently: the agent of the failed worker counts a restart, the others only see a changed
    group. Without a part of its own a rank would read addresses of dead processes.

    Every rank writes a unique token. The first rank publishes a plan with the tokens that it found;
    a rank that finds its own token there knows that the plan is of this attempt, and accepts. When
    all ranks have accepted, the plan is final.

    Args:
        store: of the rendezvous.
        rank: this process.
        size: how many ranks there are.
        timeout_seconds: how long to wait for all of them.

    Returns:
        the part of the store, and whether this is a restart: ranks have used the store before.

    Raises:
        UserError: some ranks did not come in time; names them.
    """
    token = uuid.uuid4().hex
    place = dist.PrefixStore("rendezvous", store)
    place.set(f"token/{rank}", token)
    deadline = time.monotonic() + timeout_seconds
    if rank == 0:
        return _lead(place, store, size, deadline, timeout_seconds)
    while time.monotonic() < deadline:
        if place.check(["plan"]):
            plan = json.loads(place.get("plan"))
            if plan["tokens"][rank : rank + 1] == [token]:
                place.set(f"accepted/{plan['name']}/{rank}", "yes")
                if place.check([f"final/{plan['name']}"]):
                    return dist.PrefixStore(plan["name"], store), plan["is_restart"]
        time.sleep(_POLL_SECONDS)
    raise UserError(
        f"Rank 0 did not complete the rendezvous within {timeout_seconds:g} s.",
        where="torchrun, rank 0",
        fix="Start all machines, with the same --nnodes and rendezvous endpoint.",
        code="launch-invalid",
    )


def _lead(
    place: dist.Store, store: dist.Store, size: int, deadline: float, timeout_seconds: float
) -> tuple[dist.Store, bool]:
    is_restart = place.check(["plan"])
    while time.monotonic() < deadline:
        if not place.check([f"token/{rank}" for rank in range(size)]):
            time.sleep(_POLL_SECONDS)
            continue
        name = uuid.uuid4().hex
        tokens = [place.get(f"token/{rank}").decode() for rank in range(size)]
        place.set("plan", json.dumps({"name": name, "tokens": tokens, "is_restart": is_restart}))
        answers = [f"accepted/{name}/{rank}" for rank in range(1, size)]
        if _wait_for(place, answers, min(deadline, time.monotonic() + PATIENCE_SECONDS)):
            place.set(f"final/{name}", "yes")
            return dist.PrefixStore(name, store), is_restart
    missing = [rank for rank in range(size) if not place.check([f"token/{rank}"])]
    raise UserError(
        f"The rendezvous of {size} ranks was not complete within {timeout_seconds:g} s.",
        where=f"torchrun, rank {', '.join(map(str, missing))}" if missing else "torchrun",
        fix="Start all machines, with the same --nnodes and rendezvous endpoint.",
        code="launch-invalid",
    )


def _wait_for(place: dist.Store, keys: Sequence[str], deadline: float) -> bool:
    while not all(place.check([key]) for key in keys):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
