"""Downloads, against a server on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from s3prl_mtl.errors import UserError
from s3prl_mtl.upstreams import download as hub
from s3prl_mtl.upstreams.download import default_cache_dir, download, official_checkpoint

CONTENT = (Path(__file__).parents[1] / "fixtures" / "hubert" / "written.pt").read_bytes()


class Server(ThreadingHTTPServer):
    """Serves one file, as well or as badly as a test asks."""

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
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    path = download(server.url, tmp_path)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["hubert.pt"]
    assert download(server.url, tmp_path) == path
    assert server.requests == [(None, 200)]


def test_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.stop_after = 10_000
    with pytest.raises(UserError, match=f"broke off after 10000 of {len(CONTENT)} bytes"):
        download(server.url, tmp_path)
    assert "hubert.pt" not in names(tmp_path)
    server.stop_after = None
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests == [(None, 200), ("bytes=10000-", 206)]
    assert names(tmp_path) == ["hubert.pt"]


def test_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.stop_after = 10_000
    with pytest.raises(UserError):
        download(server.url, tmp_path)
    server.stop_after = None
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("bytes=10000-", 200)


def test_pieces_of_two_versions_are_not_joined(server: Server, tmp_path: Path) -> None:
    server.content = b"x" * len(CONTENT)
    server.stop_after = 10_000
    with pytest.raises(UserError):
        download(server.url, tmp_path)
    server.content, server.etag, server.stop_after = CONTENT, '"v2"', None
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_server_that_names_no_version_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.etag, server.stop_after = "", 10_000
    with pytest.raises(UserError):
        download(server.url, tmp_path)
    server.stop_after = None
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests == [(None, 200), (None, 200)]


def test_complete_part_that_was_never_renamed_is_fetched_again(
    server: Server, tmp_path: Path
) -> None:
    server.stop_after = 10_000
    with pytest.raises(UserError):
        download(server.url, tmp_path)
    server.stop_after = None
    (tmp_path / "checkpoints" / "hubert.pt.part").write_bytes(CONTENT)
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert [status for _, status in server.requests] == [200, 416, 200]


def test_wrong_length_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.announce = 20_000
    with pytest.raises(UserError, match="damaged or no checkpoint"):
        download(server.url, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"<html>Sign in to the network</html>", CONTENT[:-100], CONTENT[:5000] + b"!" * 500]
)
def test_what_is_no_checkpoint_is_refused(server: Server, tmp_path: Path, content: bytes) -> None:
    server.content = content
    with pytest.raises(UserError, match="no checkpoint"):
        download(server.url, tmp_path)
    assert names(tmp_path) == []


def test_flipped_bit_is_noticed(server: Server, tmp_path: Path) -> None:
    content = bytearray(CONTENT)
    content[len(content) // 2] ^= 1
    server.content = bytes(content)
    with pytest.raises(UserError, match="no checkpoint"):
        download(server.url, tmp_path)


def test_missing_file_says_how_to_go_on(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UserError, match=r"(?s)Not Found.*by hand.*-k PATH") as error:
        download(server.url, tmp_path)
    assert server.url in str(error.value)


def test_no_network_says_how_to_go_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    monkeypatch.setattr(hub, "OFFICIAL_URLS", {"hubert_base": url})
    with pytest.raises(UserError, match=r"could not be downloaded.*by hand.*-k PATH"):
        official_checkpoint("hubert_base", tmp_path)


def test_cache_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(UserError, match=r"--cache_dir or \$S3PRL_MTL_CACHE"):
        download(server.url, blocked)


def test_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("S3PRL_MTL_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("S3PRL_MTL_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache_dir() == Path("/home/somebody/.cache/s3prl_mtl")
