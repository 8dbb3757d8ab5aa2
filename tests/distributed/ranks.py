"""Functions run on several ranks: real processes, a real process group over gloo."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from s3prl_mtl.distributed.world import World
from tests.forked import FORKED
from tests.launcher import free_port


def run_ranks(
    size: int, function: Callable[..., Any], *arguments: Any, seconds: float = 120
) -> list[Any]:
    """What a function returns on each of `size` ranks; it gets the world first.

    Raises:
        AssertionError: with the traceback of every rank that raised.
    """
    port = free_port()
    ends: list[Connection] = []
    processes = []
    for rank in range(size):
        ours, theirs = FORKED.Pipe()
        process = FORKED.Process(
            target=_be_rank, args=(theirs, rank, size, port, seconds, function, arguments)
        )
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    results, failures = [], []
    try:
        for rank, end in enumerate(ends):
            try:
                raised, value = (
                    pickle.loads(end.recv_bytes())
                    if end.poll(seconds)
                    else (True, "no answer in time")
                )
            except EOFError:
                raised, value = True, "it ended without an answer"
            results.append(value)
            if raised:
                failures.append(f"rank {rank}: {value}")
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    assert not failures, "\n".join(failures)
    return results


def _be_rank(
    end: Connection,
    rank: int,
    size: int,
    port: int,
    seconds: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        with World.join("gloo", timeout_seconds=seconds) as world:
            answer = False, function(world, *arguments)
    except BaseException:
        answer = True, traceback.format_exc()
    # Not `send`: that would share tensors with a process that is about to end.
    end.send_bytes(pickle.dumps(answer))
