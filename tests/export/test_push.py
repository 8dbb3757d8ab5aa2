"""`export --push` and `-u hf:REPO`, in processes of their own, on a hub of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s3prl_mtl.export.hub import _hub_errors
from s3prl_mtl.upstreams import load_upstream
from tests.export.local_hub import TOKEN, USER, LocalHub, local_hub
from tests.export.tuned_runs import save_run, tuned, waveforms
from tests.mistakes import user_error
from tests.upstreams.own_code import expected_states, write_own_encoder

pytestmark = pytest.mark.slow

REPO = f"{USER}/tuned"

CLIENT = """
import contextlib, io, json, os, sys
import torch
from s3prl_mtl.cli.main import main
from s3prl_mtl.upstreams import load_upstream

steps, waveforms, out = json.loads(sys.argv[1]), torch.load(sys.argv[2]), []
for step in steps:
    if "upstream" in step:
        upstream = load_upstream(step["upstream"], **step["options"])
        with torch.no_grad():
            out.append([upstream([wav]).states for wav in waveforms])
        continue
    os.environ.update(step["environment"])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main([*step["words"], "--verbose"])
    out.append({"status": status, "said": " ".join(said.getvalue().split())})
torch.save(out, sys.argv[2])
"""
"""Commands and upstreams one after the other: a process of each would import torch again."""


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with local_hub() as hub:
        yield hub


Client = Callable[..., list[Any]]


@pytest.fixture
def client(hub: LocalHub, tmp_path: Path) -> Client:
    """Run steps in a process of a user who is logged in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {
        **kept,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def run(*steps: dict[str, Any], **changed: str) -> list[Any]:
        path = tmp_path / "exchanged.pt"
        torch.save(waveforms(), path)
        words = [sys.executable, "-c", CLIENT, json.dumps(steps), str(path)]
        subprocess.run(words, env={**environment, **changed}, check=True)
        found: list[Any] = torch.load(path, weights_only=True)
        return found

    return run


def command(words: Sequence[str], **environment: str) -> dict[str, Any]:
    return {"words": list(words), "environment": {"HF_TOKEN": TOKEN, **environment}}


def upstream(name: str, **options: Any) -> dict[str, Any]:
    return {"upstream": name, "options": options}


def export_words(run: Path, format: str, out: Path, repo: str) -> list[str]:
    return ["export", str(run), "--format", format, "-o", str(out), "--push", repo]


def states_of(encoder: Any) -> list[Tensor]:
    with torch.no_grad():
        return [encoder([wav]).states for wav in waveforms()]


def test_what_was_pushed_is_read_back(hub: LocalHub, client: Client, tmp_path: Path) -> None:
    encoder = tuned("base_style")
    run, out = save_run(tmp_path / "run", encoder), tmp_path / "out"
    # Another encoder on a branch: the first stays where it was.
    other, second = save_run(tmp_path / "other", tuned("large_style")), tmp_path / "second"
    file = tmp_path / "hubert.pt"
    first_push, *others, default, large = client(
        command([*export_words(run, "transformers", out, REPO), "--private"]),
        command([*export_words(other, "transformers", second, REPO), "--revision", "large"]),
        command(export_words(run, "fairseq", file, f"{USER}/file")),
        upstream(f"hf:{REPO}"),
        upstream(f"hf:{REPO}@large"),
    )
    assert f" {REPO}" in first_push["said"]
    assert [first_push["status"], *(found["status"] for found in others)] == [0, 0, 0]

    assert hub.visibility == {REPO: "private", f"{USER}/file": None}
    first = hub.repositories[REPO]["main"]
    files = hub.commits[first]
    assert files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert REPO in files["README.md"].decode()
    assert files["model.safetensors"] in hub.objects.values()  # as a large file
    assert hub.commits[hub.repositories[f"{USER}/file"]["main"]] == {file.name: file.read_bytes()}

    # Not our own encoder: transformers normalises waveforms with another constant than fairseq.
    wanted_large = states_of(load_upstream(f"hf:{second}"))
    (at_commit,) = client(upstream(f"hf:{REPO}@{first}"))
    wanted = states_of(encoder)
    for found, expected in ((default, wanted), (at_commit, wanted), (large, wanted_large)):
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_refusals_of_the_hub(client: Client, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tuned("odd_base"))
    cases = {
        "no log-in": ({"HF_TOKEN": ""}, REPO, "hub-refused", "hf auth login"),
        "wrong token": ({"HF_TOKEN": "hf_wrong"}, REPO, "hub-refused", "hf auth login"),
        "not allowed": ({}, "somebody/model", "hub-refused", "hf upload somebody/model"),
        "malformed": ({}, "a/b/c", "invalid-value", "USER/NAME"),
    }
    steps = [
        command(export_words(run, "fairseq", tmp_path / f"{name}.pt", repo), **changed)
        for name, (changed, repo, _, _) in cases.items()
    ]
    for found, (name, (_, repo, code, fix)) in zip(client(*steps), cases.items(), strict=True):
        said = found["said"]
        assert found["status"] == 2, name
        assert f"[{code}]" in said and f"--push {repo}" in said and fix in said, said
        assert TOKEN not in said
        # What can be known before the export is written, is.
        assert (tmp_path / f"{name}.pt").exists() == (name == "not allowed")


@pytest.mark.parametrize(
    "changed", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}]
)
def test_no_network(changed: dict[str, str], client: Client, tmp_path: Path) -> None:
    run, out = save_run(tmp_path / "run", tuned("odd_base")), tmp_path / "hubert.pt"
    (found,) = client(command(export_words(run, "fairseq", out, REPO)), **changed)
    assert found["status"] == 2 and "[hub-refused]" in found["said"]
    assert next(iter(changed)) in found["said"] and not out.exists()


def test_a_mistake_of_the_program_is_not_the_hubs() -> None:
    with pytest.raises(KeyError), _hub_errors(REPO, None):
        raise KeyError("field")
    with user_error("hub-refused", where=REPO), _hub_errors(REPO, None):
        raise ConnectionResetError


def test_code_of_a_repository_is_executed_at_a_trusted_commit_only(
    hub: LocalHub, client: Client, tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    folder = write_own_encoder(tmp_path / "own", mark=mark)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    commit = hub.create(f"{USER}/own", files)
    changed = files["modeling_own.py"].replace(b"torch.tanh", b"torch.sin")
    hub.create(f"{USER}/own", {**files, "modeling_own.py": changed})
    # Code in another repository is not pinned by the commit of this one.
    settings = json.loads(files["config.json"])
    settings["auto_map"]["AutoModel"] = f"{USER}/elsewhere--modeling_own.OwnModel"
    changed = json.dumps(settings).encode()
    elsewhere = hub.create(f"{USER}/own2", {**files, "config.json": changed})

    flag, digits = "--trust_remote_code", "40 hexadecimal digits"
    refused = [
        ([f"{USER}/own"], f"{flag} and the full hash"),
        ([f"{USER}/own", flag], digits),
        ([f"{USER}/own@main", flag], digits),
        ([f"{USER}/own@{commit[:12]}", flag], digits),
        ([f"{USER}/own@{commit}"], f"give {flag}."),
        ([f"{USER}/own2@{elsewhere}", flag], f"{USER}/elsewhere"),
    ]
    cluster = ["cluster", str(tmp_path / "c"), "--audio", str(tmp_path), "--features", "layer:1"]
    steps = [command([*cluster, "-u", f"hf:{name}", *flags]) for (name, *flags), _ in refused]
    for found, (words, part) in zip(client(*steps), refused, strict=True):
        assert found["status"] == 2 and "[code-untrusted]" in found["said"], words
        assert part in found["said"] and "modeling_own.py" in found["said"], words
    assert not mark.exists()

    (states,) = client(upstream(f"hf:{USER}/own@{commit}", trust_remote_code=True))
    assert mark.exists()
    for wav, found in zip(waveforms(), states, strict=True):
        torch.testing.assert_close(found, expected_states(wav), atol=1e-4, rtol=1e-5)
