"""Start servers of a small run, and send requests."""

from __future__ import annotations

import json
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from s3prl_mtl.config import build_config
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.launcher import Started, environment, until

SMALL_HEADS = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"
BOUNDARY = "boundary"


def make_run(folder: Path, corpus: Path, cache: Path) -> Path:
    """Train a run of three tasks for a step."""
    settings = {
        "downstream": ["asr", "ks", "er"],
        "data": str(corpus),
        "cache_dir": str(cache),
        "upstream.name": "hubert_tiny",
        "device": "cpu",
        "runner.total_steps": 1,
        "runner.test_first": False,
        "runner.test_last": False,
    }
    MultiTaskRunner(build_config(files=[SMALL_HEADS], flags=settings), folder).train()
    return folder


class Server(Started):
    """A started server."""

    def __init__(self, run: Path, output: Path, *words: str) -> None:
        command = [sys.executable, "-m", "s3prl_mtl", "serve", str(run), "--device", "cpu"]
        super().__init__([*command, "--port", "0", *words], output, environment(run, run))
        until(lambda: "Started server" in self.text() or self.process.poll() is not None, self.text)
        found = re.search(r"http://127\.0\.0\.1:\d+", self.text())
        assert found, self.text()
        self.address = found[0]

    def head(self, path: str) -> tuple[int, str]:
        return answer(urllib.request.Request(self.address + path, method="HEAD"))

    def get(self, path: str) -> tuple[int, str]:
        return answer(urllib.request.Request(self.address + path))

    def predict(
        self,
        name: str,
        content: bytes,
        tasks: str | None = None,
        fields: Sequence[tuple[str, str]] = (),
        path: str = "/predict",
    ) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.address + path,
            form(name, content, tasks, fields),
            {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
        )
        status, text = answer(request)
        return status, json.loads(text)

    def open_requests(self) -> int:
        return int(json.loads(self.get("/health")[1])["open_requests"])

    def upload(self, body: bytes, announced: int | None = None, headers: str = "") -> socket.socket:
        """A connection that has sent the head of a request and a part of its body."""
        place = urlsplit(self.address)
        connection = socket.create_connection((place.hostname, place.port), timeout=120)
        length = (
            f"Content-Length: {announced}"
            if announced is not None
            else "Transfer-Encoding: chunked"
        )
        head = (
            f"POST /predict HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
            f"{length}\r\n{headers}"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        return connection


def answer(request: urllib.request.Request) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def form(
    name: str, content: bytes, tasks: str | None = None, fields: Sequence[tuple[str, str]] = ()
) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n"
    for key, value in [*fields, *([] if tasks is None else [("tasks", tasks)])]:
        body += (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        ).encode()
    return body + f"--{BOUNDARY}--\r\n".encode()


def received(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    with connection, connection.makefile("rb") as file:
        text = file.read().decode()
    head, _, body = text.partition("\r\n\r\n")
    return int(head.split()[1]), json.loads(body)
