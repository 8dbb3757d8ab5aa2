"""Processes of their own for a check: ranks that meet over gloo, and what goes on around them."""

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

from s3prl_mtl.authoring.sayings import said_by
from s3prl_mtl.distributed.world import OtherRankFailed, RankLost, World

SECONDS_TO_FOLLOW = 5.0
"""How long a rank may take to end once another one has."""


@dataclass(frozen=True)
class Answer:
    """What a rank gave.

    Args:
        value: of the function; None if it failed.
        failure: what it raised, in words.
        follows: it failed only because another rank did.
    """

    value: Any = None
    failure: str | None = None
    follows: bool = False


@dataclass(frozen=True)
class Setting:
    """Where a rank finds itself.

    Args:
        rank, size: which of how many.
        port: on which they meet.
        start_method: of the processes that it starts.
    """

    rank: int
    size: int
    port: int
    start_method: str


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Answer]:
    """What a function gives on each of some ranks: fresh interpreters, as torchrun starts them.

    Args:
        size: how many ranks.
        function: can be pickled; gets the world, then the arguments.
        arguments: can be pickled.
    """
    port = _free_port()
    context = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    processes: list[SpawnProcess] = []
    try:
        # What torch writes of a rank that is gone says nothing of the task.
        with program_left_out(), standard_error_kept():
            for rank in range(size):
                ours, theirs = context.Pipe()
                setting = Setting(rank, size, port, multiprocessing.get_start_method())
                call = pickle.dumps((function, arguments))
                process = context.Process(target=_be_rank, args=(theirs, setting, call))
                process.start()
                theirs.close()
                ends.append(ours)
                processes.append(process)
            return _answers(ends, processes)
    finally:
        for process in reversed(processes):
            process.kill()
            process.join()
        for end in ends:
            end.close()


def _answers(ends: Sequence[Connection], processes: Sequence[SpawnProcess]) -> list[Answer]:
    answers: dict[int, Answer] = {}
    died = False
    while len(answers) < len(ends):
        silent = [end for rank, end in enumerate(ends) if rank not in answers]
        # The others may wait for one that died, and would for long.
        ready = wait(silent, SECONDS_TO_FOLLOW if died else None)
        for rank, end in enumerate(ends):
            if end in ready:
                try:
                    answers[rank] = pickle.loads(end.recv_bytes())
                except EOFError:
                    processes[rank].join()
                    died = True
                    code = processes[rank].exitcode
                    answers[rank] = Answer(failure=f"the process of rank {rank} ended with {code}")
        if not ready:
            for rank in range(len(ends)):
                answers.setdefault(rank, Answer(failure="it waited for another", follows=True))
    return [answers[rank] for rank in range(len(ends))]


def _be_rank(end: Connection, setting: Setting, call: bytes) -> None:
    torch.set_num_threads(1)
    # A spawned process would spawn its own, and loader workers would take seconds to start.
    multiprocessing.set_start_method(setting.start_method, force=True)
    os.environ |= {
        "RANK": str(setting.rank),
        "LOCAL_RANK": str(setting.rank),
        "WORLD_SIZE": str(setting.size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(setting.port),
    }
    if sys.platform == "linux":
        # The name of this machine need not be one that can be looked up.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        with World.join("gloo") as world:
            function, arguments = pickle.loads(call)
            answer = Answer(function(world, *arguments))
    except (Exception, SystemExit) as error:
        follows = isinstance(error, OtherRankFailed | RankLost)
        answer = Answer(failure=said_by(error), follows=follows)
    # Not `send`: that would share tensors with a process that is about to end.
    end.send_bytes(pickle.dumps(answer))
    # The first rank holds what the others meet through, so all stay until they are ended.
    end.poll(None)
    os._exit(0)


@contextmanager
def program_left_out() -> Iterator[None]:
    """Inside, processes that are spawned do not run the program that this one runs.

    It may be a script that starts a check at its top level, and would start it again. What a check
    sends to processes is of modules that are installed.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


@contextmanager
def standard_error_kept() -> Iterator[Callable[[], str]]:
    """Inside, what this process and those that it starts write as errors is kept from the user.

    Gives a function that says what was written: a worker that cannot be started has no other way
    to say why.
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
    """Inside, torch computes as the ranks do: with more threads sums round in another way."""
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
