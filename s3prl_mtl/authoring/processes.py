"""Start processes for a check: ranks that meet over gloo, and context managers around them."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import Any

import torch
from torch import multiprocessing

from s3prl_mtl.authoring.contract import failure_summary
from s3prl_mtl.distributed.world import OtherRankFailed, RankLost, World

START_METHOD = "spawn"
"""Start method of the processes of the ranks."""

EXIT_TIMEOUT_SECONDS = 5.0
"""Timeout of the other ranks after one has died."""


@dataclass(frozen=True)
class RankResult:
    """The outcome of a function on one rank.

    Args:
        value: what it returned; None if it failed.
        failure: summary of the error that it raised.
        follows: it failed only because another rank did.
    """

    value: Any = None
    failure: str | None = None
    follows: bool = False


@dataclass(frozen=True)
class RankSettings:
    """Settings of the process of a rank.

    Args:
        rank, size: its rank, and the number of ranks.
        port: of the rendezvous on 127.0.0.1.
        start_method: of the processes that the rank starts.
    """

    rank: int
    size: int
    port: int
    start_method: str


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[RankResult]:
    """Call a function on several ranks, in new interpreters as torchrun starts them.

    Args:
        size: number of ranks.
        function: picklable; called with the world, then the arguments.
        arguments: picklable.

    Returns:
        The result of each rank.
    """
    port = _free_port()
    context: Any = multiprocessing.get_context(START_METHOD)
    ends: list[Connection] = []
    processes: list[SpawnProcess] = []
    try:
        # torch's messages about a lost rank say nothing about the task.
        with without_main_module(), captured_stderr():
            for rank in range(size):
                ours, theirs = context.Pipe()
                settings = RankSettings(rank, size, port, multiprocessing.get_start_method())
                call = pickle.dumps((function, arguments))
                process = context.Process(target=_run_rank, args=(theirs, settings, call))
                process.start()
                theirs.close()
                ends.append(ours)
                processes.append(process)
            return _collect(ends, processes)
    finally:
        for process in reversed(processes):
            process.kill()
            process.join()
        for end in ends:
            end.close()


def _collect(ends: Sequence[Connection], processes: Sequence[SpawnProcess]) -> list[RankResult]:
    results: dict[int, RankResult] = {}
    died = False
    while len(results) < len(ends):
        pending = [end for rank, end in enumerate(ends) if rank not in results]
        # The other ranks may wait for a dead one until gloo's timeout.
        ready = wait(pending, EXIT_TIMEOUT_SECONDS if died else None)
        for rank, end in enumerate(ends):
            if end in ready:
                try:
                    results[rank] = pickle.loads(end.recv_bytes())
                except EOFError:
                    processes[rank].join()
                    died = True
                    code = processes[rank].exitcode
                    results[rank] = RankResult(failure=f"its process exited with code {code}")
        if not ready:
            for rank in range(len(ends)):
                waited = RankResult(failure="it waited for another rank", follows=True)
                results.setdefault(rank, waited)
    return [results[rank] for rank in range(len(ends))]


def _run_rank(end: Connection, settings: RankSettings, call: bytes) -> None:
    torch.set_num_threads(1)
    # Spawned processes inherit `spawn`, which would make loader workers start slowly.
    multiprocessing.set_start_method(settings.start_method, force=True)
    os.environ |= {
        "RANK": str(settings.rank),
        "LOCAL_RANK": str(settings.rank),
        "WORLD_SIZE": str(settings.size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(settings.port),
    }
    if sys.platform == "linux":
        # The host name may not resolve.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        with World.join("gloo") as world:
            function, arguments = pickle.loads(call)
            result = RankResult(function(world, *arguments))
    except (Exception, SystemExit) as error:
        follows = isinstance(error, OtherRankFailed | RankLost)
        result = RankResult(failure=failure_summary(error), follows=follows)
    # Not `send`, which would share tensors with a process that is about to exit.
    end.send_bytes(pickle.dumps(result))
    # Rank 0 hosts the store of the group, so all ranks stay until they are killed.
    end.poll(None)
    os._exit(0)


@contextmanager
def without_main_module() -> Iterator[None]:
    """Keep spawned processes from importing this program's main module.

    It may be a script that starts a check at its top level, and would start it again. Nothing that
    a check sends to processes is defined there.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Capture the standard error of this process and of the processes that it starts.

    Yields a function that returns what was written so far. A worker that cannot be started reports
    the reason only there.
    """
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def written() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        os.dup2(file.fileno(), 2)
        try:
            yield written
        finally:
            os.dup2(before, 2)
            os.close(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as the ranks do: sums round differently with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
