"""Predictions on several devices, by a process for each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from s3prl_mtl.errors import UserError
from s3prl_mtl.inference.files import FilePredictor, Line, LoadedTasks, PredictSettings

WAITING = 256
"""Maximum number of batches whose lines wait for an earlier batch, such as a long file."""


class DevicePool:
    """Processes that hold the same run on several devices. Use it as a context manager.

    A process takes the next batch when it is free.

    Args:
        settings: the run and its use.
        devices: of the processes; a device may be given twice.

    Attributes:
        tasks: as those of :class:`FilePredictor`.

    Raises:
        UserError: as :class:`FilePredictor`, from any of them.
    """

    def __init__(self, settings: PredictSettings, devices: Sequence[str]) -> None:
        # A fork would inherit the threads of torch and the state of CUDA.
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        threads = max(1, (os.cpu_count() or 1) // len(devices))
        for device in devices:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, settings, device, threads), daemon=True
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        try:
            loaded = [_receive(one) for one in self._connections]
        except BaseException:
            self.close()
            raise
        self.tasks: LoadedTasks = loaded[0]

    def lines(self, batches: Iterable[Sequence[Path]]) -> Iterator[list[Line]]:
        """The lines of each batch, in the order of the batches.

        Raises:
            UserError: a process has ended.
            RuntimeError: a process has failed.
        """
        numbered = enumerate(batches)
        idle = list(self._connections)
        busy: dict[Any, int] = {}
        done: dict[int, list[Line]] = {}
        due, given, is_left = 0, 0, True
        while is_left or busy:
            while idle and is_left and given - due < WAITING:
                number, batch = next(numbered, (-1, None))
                if batch is None:
                    is_left = False
                else:
                    connection = idle.pop()
                    connection.send(list(batch))
                    busy[connection] = number
                    given = number + 1
            for ready in wait(list(busy)) if busy else ():
                assert isinstance(ready, Connection)
                done[busy.pop(ready)] = _receive(ready)
                idle.append(ready)
            while due in done:
                yield done.pop(due)
                due += 1

    def close(self) -> None:
        """End the processes, also busy ones."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def __enter__(self) -> DevicePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _receive(connection: Connection) -> Any:
    """The next message of a process.

    Raises:
        UserError: which the process sent, or the process is gone.
        RuntimeError: it failed otherwise.
    """
    try:
        message = connection.recv()
    except (EOFError, ConnectionError) as cause:
        raise UserError(
            "A worker process of `predict` was killed, or could not start.",
            where="--device",
            fix="If memory was short, lower --batch_seconds or name fewer devices. In Python, call "
            '`predict` below `if __name__ == "__main__":`. The same command continues `--out`.',
            code="worker-died",
        ) from cause
    if isinstance(message, UserError):
        raise message
    if isinstance(message, str):
        raise RuntimeError(f"A process of `predict` failed:\n{message}")
    return message


def _work(connection: Connection, settings: PredictSettings, device: str, threads: int) -> None:
    """Predict for batches from the connection until its other end is closed."""
    # Ctrl-C goes to the whole group: the first process ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    # The other end closes when the first process ends, however it does.
    with suppress(EOFError, ConnectionError):
        try:
            predictor = FilePredictor(settings, device)
            connection.send(predictor.tasks)
            while True:
                connection.send(predictor.lines(connection.recv()))
        except UserError as error:
            connection.send(error)
        except (EOFError, ConnectionError):
            raise
        except Exception:
            connection.send(traceback.format_exc())
