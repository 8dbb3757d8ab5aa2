"""Serve a run over HTTP. The flags of the command are in `s3prl_mtl/cli/serve.py`."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3prl_mtl.api.calls import PathLike, Words, callable_from_python, split_tasks
from s3prl_mtl.errors import UserError, require_packages


@callable_from_python
def serve(
    run: PathLike,
    *,
    task: Words | None = None,
    device: str = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    max_megabytes: float = 100.0,
    max_seconds: float = 3600.0,
    timeout: float = 600.0,
    max_waiting: int = 8,
    chunk_seconds: int | None = None,
    overlap_seconds: int | None = None,
    decoder: str | Mapping[str, Any] | None = None,
    nbest: int = 1,
    timestamps: bool = False,
    trust_remote_code: bool = False,
    on_start: Callable[[str], object] | None = None,
) -> None:
    """Serve the predictions of a run until SIGTERM or Ctrl-C: the command `serve`.

    Requests that are being served are answered first.

    Args:
        run: the folder of a run, or one of its `.ckpt` files.
        task: the tasks; by default all of the run that make predictions.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        host: address to listen on.
        port: 0 takes a free one.
        max_megabytes: of a request.
        max_seconds: of its audio.
        timeout: seconds until a request is answered.
        max_waiting: requests that wait for another one.
        chunk_seconds: longer audio is read in chunks of this length; by default 40.
        overlap_seconds: of neighbouring chunks; by default 4.
        decoder: of `asr`, in place of the run's: settings by name, or the text of the flag.
        nbest: transcripts of a file; more than one need a language model.
        timestamps: add the times of words (asr) and phones (pr).
        trust_remote_code: execute modelling code of the repository of the encoder.
        on_start: called with the address, such as `http://127.0.0.1:8000`.

    Returns:
        nothing; when the server has ended.

    Raises:
        UserError: packages are missing, the run or a task does not exist, or the address or a limit
            cannot be used.
    """
    require_packages(["fastapi", "uvicorn", "python_multipart"], where="serve", extra="serve")
    import uvicorn

    from s3prl_mtl.inference.chunking import chunking_of
    from s3prl_mtl.inference.files import FilePredictor, PredictSettings
    from s3prl_mtl.inference.transcribing import Transcribing, parse_decoder
    from s3prl_mtl.serving.app import make_app
    from s3prl_mtl.serving.limits import Limits
    from s3prl_mtl.serving.model import ServedModel

    limits = Limits(max_megabytes, max_seconds, timeout, max_waiting)
    if not min(max_megabytes, max_seconds, timeout) > 0:
        raise UserError(
            "Limits must be positive.",
            where="--max_megabytes, --max_seconds, --timeout",
            code="invalid-value",
        )
    if max_waiting < 0:
        raise UserError(
            "The number must not be negative.", where="--max_waiting", code="invalid-value"
        )
    if isinstance(decoder, str):
        decoder = parse_decoder(decoder, "--decoder")
    settings = PredictSettings(
        Path(run),
        tuple(split_tasks(task, "--task")) if task else None,
        transcribing=Transcribing(decoder or None, nbest, timestamps),
        trust_remote_code=trust_remote_code,
    )
    chunking = chunking_of(chunk_seconds, overlap_seconds)
    with _listen(host, port) as listener:
        predictor = FilePredictor(settings, device)
        name = Path(os.path.abspath(run)).name
        model = ServedModel(predictor.run, predictor.tasks.names, chunking, max_seconds)
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(model, name, limits),
                log_config=None,
                lifespan="off",
                timeout_graceful_shutdown=int(timeout) + 1,
            )
        )
        if on_start is not None:
            shown = f"[{host}]" if ":" in host else host
            on_start(f"http://{shown}:{listener.getsockname()[1]}")
        try:
            with _sigterm_ends_in_order():
                server.run(sockets=[listener])
        finally:
            model.close()


@contextmanager
def _sigterm_ends_in_order() -> Iterator[None]:
    """uvicorn raises the signal that stopped it again: for SIGTERM, the end is not a failure."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set handlers
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listen(host: str, port: int) -> socket.socket:
    """A socket on an address.

    Raises:
        UserError: it cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as cause:
        raise UserError(
            f"The server cannot listen there: {getattr(cause, 'strerror', None) or cause}.",
            where=f"--host {host} --port {port}",
            fix="Choose another --port; 0 takes a free one.",
            code="invalid-value",
        ) from cause
