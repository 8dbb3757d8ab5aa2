"""A run of a downloaded upstream of s3prl's zoo does not need the download again."""

from __future__ import annotations

import http.server
import importlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.upstreams import load_upstream, rebuild_upstream
from s3prl_mtl.upstreams.zoo import stored_files
from s3prl_mtl.upstreams.zoo.s3prl_hub import import_hub, zoo_names
from s3prl_mtl.upstreams.zoo.stored_files import (
    MAX_STORED_BYTES,
    s3prl_downloads,
    store_files,
    write_stored,
)
from tests.mistakes import user_error
from tests.upstreams.test_zoo import alone, run_config, waveforms
from tests.upstreams.zoo_checkpoints import DOWNLOADED, make_checkpoint


def s3prl_download() -> Any:
    return importlib.import_module("s3prl.util.download")


class Network:
    """Replaces the two functions in which s3prl opens connections."""

    def __init__(self, write: Callable[[Path], Any]) -> None:
        self.write = write
        self.there = True
        self.requests: list[str] = []

    def get(self, url: str, dst: Path, *_rest: Any, **_more: Any) -> None:
        if not self.there:
            raise OSError("no network")
        self.requests.append(url)
        self.write(Path(dst))


@pytest.fixture
def network_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A network that serves the same file under every URL."""
    download = s3prl_download()
    monkeypatch.setattr(download, "_download_dir", tmp_path / "s3prl")

    def _network_with(write: Callable[[Path], Any]) -> Network:
        network = Network(write)
        monkeypatch.setattr(download, "_download_url_to_file", network.get)
        monkeypatch.setattr(download, "_download_url_to_file_requests", network.get)
        return network

    return _network_with


def saved(upstream: Any, path: Path) -> dict[str, Any]:
    """An upstream after a round trip through a checkpoint file."""
    torch.save({"info": upstream.checkpoint_info, "state": upstream.state_dict()}, path)
    read: dict[str, Any] = torch.load(path, weights_only=True)
    return read


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_downloaded_encoder_is_rebuilt_without_cache_or_network(
    name: str, network_with, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stored_files, "MAX_STORED_ELEMENTS", 0)
    network = network_with(partial(make_checkpoint, name))
    upstream = load_upstream(name, cache_dir=tmp_path / "cache")
    assert len(network.requests) == 1
    assert list(upstream.checkpoint_info["files"]) == network.requests
    theirs = getattr(import_hub(zoo_names()[name]), name)().eval()  # Into its own cache.
    wavs = waveforms(9000, 16_000, 9000, 4001)
    with torch.no_grad():
        together = upstream(wavs).split()
    for wav, states in zip(wavs, together, strict=True):
        torch.testing.assert_close(states, alone(theirs, wav), atol=1e-4, rtol=1e-4)
    states = upstream.train()(waveforms(16_000)).states
    (
        states * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    ).sum().backward()
    moved = [p for p in upstream.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(moved) > len(list(upstream.parameters())) / 2

    with torch.no_grad():
        for parameter in upstream.eval().parameters():
            parameter.add_(0.01)
    run = saved(upstream, tmp_path / "run.ckpt")
    network.there = False
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "s3prl")
    rebuilt = rebuild_upstream(run["info"]).eval()
    rebuilt.load_state_dict(run["state"])
    with torch.no_grad():
        assert torch.equal(rebuilt(wavs).states, upstream(wavs).states)
    again = rebuild_upstream(saved(rebuilt, tmp_path / "resumed.ckpt")["info"]).eval()
    again.load_state_dict(run["state"])
    with torch.no_grad():
        assert torch.equal(again(wavs).states, upstream(wavs).states)


def test_weights_are_not_stored_twice(network_with, tmp_path: Path):
    network_with(partial(make_checkpoint, "byol_a_512"))
    upstream = load_upstream("byol_a_512", cache_dir=tmp_path / "cache")
    torch.save(upstream.checkpoint_info, tmp_path / "info")
    torch.save(upstream.state_dict(), tmp_path / "state")
    assert (tmp_path / "info").stat().st_size < (tmp_path / "state").stat().st_size / 20


def test_utterances_of_equal_length_do_not_affect_each_other(network_with, tmp_path: Path):
    """`byol_s` normalises by the statistics of the whole batch."""
    network_with(partial(make_checkpoint, "byol_s_default"))
    upstream = load_upstream("byol_s_default", cache_dir=tmp_path / "cache")
    first, second = waveforms(16_000, 16_000)
    with torch.no_grad():
        one = upstream([first, second]).split()[0]
        two = upstream([first, 50 * second]).split()[0]
        theirs = upstream.expert([first, 50 * second])["hidden_states"][0][:1]
    torch.testing.assert_close(one, two)
    assert (theirs - two).abs().max() > 0.01


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the local URL that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "maker"),
    [("wavlm_url", "wavlm_local"), ("wav2vec2_custom", "wav2vec2_local")],
)
def test_a_checkpoint_given_by_its_url_is_needed_once(
    name: str, maker: str, served: tuple[Path, str], tmp_path: Path
):
    folder, address = served
    path = make_checkpoint(maker, folder / "encoder.pt")
    upstream = load_upstream(name, f"{address}/encoder.pt", cache_dir=tmp_path / "cache")
    path.unlink()
    shutil.rmtree(tmp_path / "cache")
    run = saved(upstream, tmp_path / "run.ckpt")
    rebuilt = rebuild_upstream(run["info"]).eval()
    rebuilt.load_state_dict(run["state"])
    wavs = waveforms(8000, 5000)
    with torch.no_grad():
        assert torch.equal(rebuilt(wavs).states, upstream(wavs).states)
    with user_error("upstream-failed", where=r"module s3prl\.upstream\."):
        load_upstream(name, f"{address}/encoder.pt", cache_dir=tmp_path / "cache")


@pytest.mark.slow
def test_a_run_resumes_without_its_downloads(
    network_with, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    cache = tmp_path / "cache"
    shutil.copytree(manifest_cache, cache)
    network = network_with(partial(make_checkpoint, "wavlm_base_plus"))
    config = run_config(tiny_corpus, cache, 2, **{"upstream.name": "wavlm_base_plus"})
    MultiTaskRunner(config, tmp_path / "whole").train()
    whole = checkpoints.load(tmp_path / "whole" / "states-2.ckpt")
    network.there = False
    shutil.rmtree(cache)
    config["cache_dir"] = str(manifest_cache)
    halfway = checkpoints.load(tmp_path / "whole" / "states-1.ckpt")
    MultiTaskRunner(config, tmp_path / "resumed", resume=halfway).train()
    resumed = checkpoints.load(tmp_path / "resumed" / "states-2.ckpt")
    for name, held in whole.upstream.items():
        assert torch.equal(resumed.upstream[name], held), name


def test_s3prls_downloads_are_restored(network_with, tmp_path: Path):
    network = network_with(lambda path: path.write_text("a: 1\n"))
    download = s3prl_download()
    function, folder = download._download, download.get_dir()
    with s3prl_downloads(tmp_path / "cache") as asked:
        download._urls_to_filepaths("https://example.org/a.yaml")
    assert list(asked) == network.requests == ["https://example.org/a.yaml"]
    assert asked["https://example.org/a.yaml"].parent == tmp_path / "cache"
    with pytest.raises(ZeroDivisionError), s3prl_downloads(tmp_path / "cache"):
        _ = 1 / 0
    assert (download._download, download.get_dir()) == (function, folder)


def test_small_files_of_any_format_are_stored(network_with, tmp_path: Path):
    (tmp_path / "config.yaml").write_bytes(b"frontend: \xff\x00\n")
    kept = store_files({"https://example.org/config.yaml": tmp_path / "config.yaml"})
    torch.save(kept, tmp_path / "kept")
    kept = torch.load(tmp_path / "kept", weights_only=True)
    network = network_with(lambda path: path.write_text("else"))
    network.there = False
    download = s3prl_download()
    (tmp_path / "elsewhere").mkdir()
    with s3prl_downloads(tmp_path / "elsewhere", kept):
        path = download._urls_to_filepaths("https://example.org/config.yaml")
        assert Path(path).read_bytes() == b"frontend: \xff\x00\n"


def test_a_file_that_is_not_stored_is_logged_and_downloaded_again(
    network_with, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    large = tmp_path / "words.txt"
    large.write_bytes(b"x" * (MAX_STORED_BYTES + 1))
    with caplog.at_level(logging.WARNING):
        kept = store_files({"https://example.org/words.txt": large})
    assert kept == {}
    (record,) = caplog.records
    assert record.name == stored_files.__name__
    assert record.args == ("https://example.org/words.txt",)
    network_with(lambda path: path.write_text("again"))
    download = s3prl_download()
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        with s3prl_downloads(tmp_path / place, kept):
            path = download._urls_to_filepaths("https://example.org/words.txt")
        assert Path(path).read_text() == "again"
        assert Path(path).parent == download.get_dir()


def test_a_stored_folder_does_not_write_outside_itself(tmp_path: Path):
    held = {"bytes": torch.tensor([65], dtype=torch.uint8)}
    write_stored({"folder": {"../outside": held, "/inside": held}}, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "inside", "outside"]
    assert not (tmp_path / "outside").exists()
