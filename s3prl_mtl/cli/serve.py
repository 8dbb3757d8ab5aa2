"""`serve`: the predictions of a trained run over HTTP."""

from __future__ import annotations

import argparse
import os
import signal
import socket
from pathlib import Path

from s3prl_mtl.cli.parser import add_trust
from s3prl_mtl.cli.predict import add_chunking
from s3prl_mtl.errors import UserError, require_packages
from s3prl_mtl.registry.task_names import split_specs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run, or one of its .ckpt files")
    parser.add_argument("--task", metavar="TASKS", help="asr,ks,... (default: all of the run)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (8000)")
    parser.add_argument("--max_megabytes", type=float, default=100.0, help="of a request (100)")
    parser.add_argument("--max_seconds", type=float, default=3600.0, help="of its audio (3600)")
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="seconds until a request is answered (600)"
    )
    parser.add_argument(
        "--max_waiting", type=int, default=8, help="requests that wait for another one (8)"
    )
    add_chunking(parser)
    parser.add_argument(
        "--decoder", metavar="NAME=VALUE,...", help="decode asr by lm=FILE,lexicon=FILE,beam=N,..."
    )
    parser.add_argument(
        "--nbest", type=int, default=1, metavar="N", help="transcripts of a file (with an lm)"
    )
    parser.add_argument(
        "--timestamps", action="store_true", help="add the times of words (asr), phones (pr)"
    )
    add_trust(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that are being served are answered first.

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
    from s3prl_mtl.tracking.console import OUTPUT

    limits = Limits(
        arguments.max_megabytes, arguments.max_seconds, arguments.timeout, arguments.max_waiting
    )
    if not min(limits.max_megabytes, limits.max_seconds, limits.timeout) > 0:
        raise UserError(
            "Limits must be positive.",
            where="--max_megabytes, --max_seconds, --timeout",
            code="invalid-value",
        )
    if limits.max_waiting < 0:
        raise UserError(
            "The number must not be negative.", where="--max_waiting", code="invalid-value"
        )
    tasks = tuple(split_specs(arguments.task, flag="--task")) if arguments.task else None
    chunking = chunking_of(arguments.chunk_seconds, arguments.overlap_seconds)
    decoder = parse_decoder(arguments.decoder, "--decoder") if arguments.decoder else None
    settings = PredictSettings(
        arguments.run,
        tasks,
        transcribing=Transcribing(decoder, arguments.nbest, arguments.timestamps),
        trust_remote_code=arguments.trust_remote_code,
    )
    listener = _listen(arguments.host, arguments.port)
    with listener:
        predictor = FilePredictor(settings, arguments.device)
        name = Path(os.path.abspath(arguments.run)).name
        model = ServedModel(predictor.run, predictor.tasks.names, chunking, limits.max_seconds)
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(model, name, limits),
                log_config=None,
                lifespan="off",
                timeout_graceful_shutdown=int(limits.timeout) + 1,
            )
        )
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        OUTPUT.print(f"http://{host}:{listener.getsockname()[1]}", soft_wrap=True)
        # uvicorn raises the signal that stopped it again: for SIGTERM, the end is not a failure.
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            server.run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, before)
            model.close()


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
