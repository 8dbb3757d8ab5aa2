"""A real server process, over real HTTP."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import s3prl_mtl
from s3prl_mtl.cli.main import main
from tests.downstream_plugins.ngram import count_bigrams, write_arpa
from tests.launcher import send, until
from tests.serving.servers import Server, answer, form, make_run, received

pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, manifest_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "served", tiny_corpus, manifest_cache)


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with Server(run, log, "--chunk_seconds", "4", "--overlap_seconds", "2") as started:
        yield started


def sound(path: Path, seconds: float) -> Path:
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(16_000 * seconds))
    soundfile.write(path, noise.astype(np.float32), 16_000)
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_answers_are_those_of_python(
    server: Server, run: Path, tmp_path: Path, suffix: str
) -> None:
    trained = s3prl_mtl.load(run, device="cpu")
    path = sound(tmp_path / f"a b.{suffix}", 2)
    status, answers = server.predict(path.name, path.read_bytes(), "ks, asr")
    assert status == 200 and list(answers) == ["file", "ks", "asr"]
    (expected,) = trained.predict([path], ["ks", "asr"])
    assert answers["file"] == path.name and answers["asr"]["text"] == expected["asr"]["text"]
    assert answers["ks"]["class"] == expected["ks"]["class"]
    assert answers["ks"]["probability"] == pytest.approx(expected["ks"]["probability"], abs=1e-4)


@pytest.mark.slow
def test_transcripts_of_a_language_model_are_listed(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text")
    write_arpa(tmp_path / "lm.arpa", *count_bigrams(["A B", "B A"]))
    (tmp_path / "words").write_text("A\nB\n")
    # A head that learned nothing prefers blanks: a word has to be worth something.
    decoder = f"lm={tmp_path}/lm.arpa,lexicon={tmp_path}/words,beam=20,word_score=20"
    path = sound(tmp_path / "a.wav", 2)
    words = ["--task", "asr", "--decoder", decoder, "--nbest", "2", "--timestamps"]
    with Server(run, tmp_path / "log", *words) as server:
        status, answers = server.predict(path.name, path.read_bytes())
    assert status == 200
    texts = [entry["text"] for entry in answers["asr"]["nbest"]]
    assert len(set(texts)) == 2 and texts[0] == answers["asr"]["text"]
    assert [entry["word"] for entry in answers["asr"]["times"]] == texts[0].split()


def test_long_audio_is_predicted_in_chunks(server: Server, tmp_path: Path) -> None:
    path = sound(tmp_path / "long.wav", 11)
    status, answers = server.predict("long.wav", path.read_bytes())
    assert status == 200 and list(answers) == ["file", "asr", "ks", "er"]
    assert [chunk["start"] for chunk in answers["er"]["chunks"]] == [0, 2, 4, 6, 8]


def test_mistakes_are_explained(server: Server, tmp_path: Path) -> None:
    good = sound(tmp_path / "a.wav", 1).read_bytes()
    for content, tasks, code in (
        (b"this is not audio", "ks", "audio-unreadable"),
        (b"", "ks", "audio-unreadable"),
        (good[:-100], "ks", "audio-unreadable"),
        (sound(tmp_path / "b.wav", 0.01).read_bytes(), "ks", "audio-too-short"),
        (good, "kss", "unknown-name"),
    ):
        status, error = server.predict("speech.wav", content, tasks)
        assert (status, error["code"]) == (400, code)
        # Not the place of the server's own copy.
        assert "/tmp" not in error["error"] and str(tmp_path) not in error["error"]
        assert code == "unknown-name" or "speech.wav" in error["error"]
    request = urllib.request.Request(server.address + "/predict", b"x", {"Content-Type": "a/b"})
    assert answer(request)[0] == 422
    assert server.get("/predict")[0] == 405 and server.get("/nothing")[0] == 404
    assert server.predict("a.wav", good)[0] == 200


@pytest.mark.parametrize(
    "fields", [[("tasks", "ks"), ("tasks", "er")], [("task", "er")], [("file", "x")]]
)
def test_what_would_be_ignored_is_refused(
    server: Server, tmp_path: Path, fields: list[tuple[str, str]]
) -> None:
    content = sound(tmp_path / "a.wav", 1).read_bytes()
    status, error = server.predict("a.wav", content, fields=fields)
    assert (status, error["code"]) == (422, "invalid-request") and fields[0][0] in error["error"]
    status, error = server.predict("a.wav", content, "ks", path="/predict?tasks=er")
    assert (status, error["code"]) == (422, "invalid-request") and "?tasks" in error["error"]


def test_the_run_and_the_interface_are_described(server: Server, run: Path) -> None:
    health = json.loads(server.get("/health")[1])
    assert health["status"] == "ok" and health["run"] == run.name and health["step"] == 1
    assert health["tasks"] == ["asr", "ks", "er"] and health["open_requests"] == 0
    interface = json.loads(server.get("/openapi.json")[1])
    assert list(interface["paths"]) == ["/predict", "/health"]
    responses = interface["paths"]["/predict"]["post"]["responses"]
    assert set(responses) == {"200", "400", "413", "422", "503", "504"}
    for code in responses.keys() - {"200"}:
        schema = responses[code]["content"]["application/json"]["schema"]
        assert schema["properties"].keys() == {"error", "code"}
    for page in ("/", "/docs"):
        status, text = server.get(page)
        assert status == 200 and not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    for path in ("/", "/docs", "/health"):  # asked by load balancers
        assert server.head(path) == (200, "")


@pytest.mark.slow
def test_limits(run: Path, tmp_path: Path) -> None:
    limits = ["--max_megabytes", "1", "--max_seconds", "5", "--max_waiting", "1", "--timeout", "4"]
    with Server(run, tmp_path / "log", *limits) as server:
        long = sound(tmp_path / "long.flac", 6).read_bytes()
        status, error = server.predict("long.flac", long)
        assert (status, error["code"]) == (413, "audio-too-long")
        # Refused by its announced size before it is sent, and without one when it is too much.
        status, error = received(server.upload(b"", 2_000_000, "Expect: 100-continue\r\n"))
        assert (status, error["code"]) == (413, "request-too-large")
        status, error = server.predict("a.wav", bytes(2_000_000))
        assert (status, error["code"]) == (413, "request-too-large")
        body = form("a.wav", bytes(1_100_000))
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        status, error = received(server.upload(chunked))
        assert (status, error["code"]) == (413, "request-too-large")
        # Uploads that do not end hold their places until the time is over.
        slow = [server.upload(b"--", announced=1000) for _ in range(2)]
        until(lambda: server.open_requests() == 2, server.text)
        status, error = server.predict("a.wav", b"")
        assert (status, error["code"]) == (503, "server-busy")
        for connection in slow:
            status, error = received(connection)
            assert (status, error["code"]) == (504, "timeout")
        until(lambda: server.open_requests() == 0, server.text)
        assert server.predict("a.wav", b"", "ks")[0] == 400


@pytest.mark.slow
def test_sigterm_ends_the_server_after_the_requests_that_it_serves(
    run: Path, tmp_path: Path
) -> None:
    with Server(run, tmp_path / "log", "--task", "ks") as server:
        body = form("a.wav", sound(tmp_path / "a.wav", 1).read_bytes())
        connection = server.upload(body[:100], announced=len(body))
        until(lambda: server.open_requests() == 1, server.text)
        send(server.process.pid, signal.SIGTERM)
        until(lambda: "Shutting down" in server.text(), server.text)
        connection.sendall(body[100:])
        status, answers = received(connection)
        assert status == 200 and set(answers) == {"file", "ks"}
        assert server.wait(60) == 0


def test_requests_at_the_same_time_have_their_own_answers(server: Server, tmp_path: Path) -> None:
    bodies = []
    for number, seconds in enumerate((1, 3, 2, 6)):
        content = sound(tmp_path / f"{number}.wav", seconds).read_bytes()
        bodies.append((form(f"{number}.wav", content, "er"), content))
    alone = [server.predict(f"{n}.wav", content, "er")[1] for n, (_, content) in enumerate(bodies)]
    connections = [server.upload(body, announced=len(body)) for body, _ in bodies]
    assert [received(connection)[1] for connection in connections] == alone


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--port", "70000"], "invalid-value"),
        (["--timeout", "0"], "invalid-value"),
        (["--max_waiting", "-1"], "invalid-value"),
        (["--task", "nothing", "--port", "0"], "unknown-name"),
        (["--nbest", "2", "--port", "0"], "missing-option"),
    ],
)
def test_mistakes_of_the_command_are_found(
    run: Path, words: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(run), "--device", "cpu", "--verbose", *words]) == 2
    assert f"[{code}]" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(run), "--port", port]) == 2
    assert port in capsys.readouterr().err
