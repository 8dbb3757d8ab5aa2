"""Downloads from a local server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from s3prl_mtl.upstreams import download as module
from s3prl_mtl.upstreams.download import download, official_checkpoint
from tests.mistakes import user_error

CONTENT = (Path(__file__).parents[1] / "fixtures" / "hubert" / "written.pt").read_bytes()


class Server(ThreadingHTTPServer):
    """Serves one file, with the faults that a test sets."""

    content = CONTENT
    ranges = True
    etag = '"v1"'
    stop_after: int | None = None
    announce: int | None = None
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str | None, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/models/hubert.pt"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        start = 0
        if server.ranges and wanted and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        status = server.status if not start else 206
        if start >= len(server.content):
            status = 416
        body = b"" if status >= 400 else server.content[start:]
        server.requests.append((wanted, status))
        self.send_response(status)
        if server.etag:
            self.send_header("ETag", server.etag)
        length = len(body) if server.announce is None else server.announce
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body[: server.stop_after])

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    """The files in a folder, without locks."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in files if path.suffix != ".lock")


def test_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    path = download(server.url, tmp_path)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["hubert.pt"]
    assert download(server.url, tmp_path) == path
    assert server.requests == [(None, 200)]


def test_interrupted_download_resumes(server: Server, tmp_path: Path) -> None:
    server.stop_after = 10_000
    where = f"{server.url} .10000 of {len(CONTENT)} bytes"
    with user_error("download-failed", where=where, fix="-k PATH"):
        download(server.url, tmp_path)
    assert "hubert.pt" not in names(tmp_path)
    server.stop_after = None
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests == [(None, 200), ("bytes=10000-", 206)]
    assert names(tmp_path) == ["hubert.pt"]


def test_server_without_ranges_sends_the_whole_file(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.stop_after = 10_000
    with user_error("download-failed"):
        download(server.url, tmp_path)
    server.stop_after = None
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("bytes=10000-", 200)


def test_parts_of_two_versions_are_not_joined(server: Server, tmp_path: Path) -> None:
    server.content = b"x" * len(CONTENT)
    server.stop_after = 10_000
    with user_error("download-failed"):
        download(server.url, tmp_path)
    server.content, server.etag, server.stop_after = CONTENT, '"v2"', None
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_server_without_versions_sends_the_whole_file(server: Server, tmp_path: Path) -> None:
    server.etag, server.stop_after = "", 10_000
    with user_error("download-failed"):
        download(server.url, tmp_path)
    server.stop_after = None
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests == [(None, 200), (None, 200)]


def test_complete_but_unverified_part_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    server.stop_after = 10_000
    with user_error("download-failed"):
        download(server.url, tmp_path)
    server.stop_after = None
    (tmp_path / "checkpoints" / "hubert.pt.part").write_bytes(CONTENT)
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert [status for _, status in server.requests] == [200, 416, 200]


def test_wrong_length_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.announce = 20_000
    with user_error("checkpoint-format", where=server.url):
        download(server.url, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"<html>Sign in to the network</html>", CONTENT[:-100], CONTENT[:5000] + b"!" * 500]
)
def test_other_contents_are_refused_and_removed(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    server.content = content
    with user_error("checkpoint-format", where=server.url):
        download(server.url, tmp_path)
    assert names(tmp_path) == []


def test_flipped_bit_is_detected(server: Server, tmp_path: Path) -> None:
    content = bytearray(CONTENT)
    content[len(content) // 2] ^= 1
    server.content = bytes(content)
    with user_error("checkpoint-format", where=server.url):
        download(server.url, tmp_path)


def test_missing_file_is_an_error_with_a_remedy(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with user_error("download-failed", where=server.url, fix="-k PATH") as caught:
        download(server.url, tmp_path)
    assert "404" in caught.value.what


def test_no_network_is_an_error_with_a_remedy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    monkeypatch.setattr(module, "OFFICIAL_URLS", {"hubert_base": url})
    with user_error("download-failed", where=url, fix="-k PATH"):
        official_checkpoint("hubert_base", tmp_path)


def test_cache_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with user_error("file-unwritable", where=str(blocked), fix=r"--cache_dir.*S3PRL_MTL_CACHE"):
        download(server.url, blocked)


def test_of_several_processes_one_downloads(server: Server, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(download(server.url, tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in found] == [CONTENT] * 4
    assert len(server.requests) == 1
