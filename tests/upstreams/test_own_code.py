"""Encoders whose repository has modelling code; tests/export/test_push.py has those of a hub."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from s3prl_mtl.cli.main import main
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams import load_upstream, rebuild_upstream
from s3prl_mtl.upstreams.zoo import repository_code
from s3prl_mtl.upstreams.zoo.repository_code import Repository
from tests.mistakes import user_error
from tests.upstreams.own_code import expected_states, write_own_encoder


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r for r in caplog.records if r.name == repository_code.__name__]
    return [r.getMessage() for r in found if r.levelno == logging.WARNING]


@pytest.mark.parametrize("lengths", [False, True], ids=["of transformers", "with lengths"])
def test_code_is_executed_only_if_it_is_trusted(
    lengths: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mark = tmp_path / "executed"
    folder = write_own_encoder(tmp_path / "own", lengths, mark)
    with user_error("code-untrusted", where=f"-u hf:{folder}", fix="--trust_remote_code") as caught:
        load_upstream(f"hf:{folder}")
    assert "configuration_own.py, modeling_own.py" in caught.value.what
    assert not mark.exists() and not warnings_in(caplog)
    upstream = load_upstream(f"hf:{folder}", trust_remote_code=True)
    assert mark.exists()
    (said,) = warnings_in(caplog)
    assert str(folder) in said and "executed" in said
    wavs = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (400, 8_000)]
    with torch.no_grad():
        found = upstream(wavs).split()
    for states, wav in zip(found, wavs, strict=True):
        torch.testing.assert_close(states, expected_states(wav, lengths), atol=1e-4, rtol=1e-5)
    with user_error("code-untrusted", where="checkpoint"):
        rebuild_upstream(upstream.checkpoint_info)
    again = rebuild_upstream(upstream.checkpoint_info, trust_remote_code=True)
    again.load_state_dict(upstream.state_dict())
    with torch.no_grad():
        assert torch.equal(again(wavs).states, upstream(wavs).states)


def test_a_known_model_needs_no_code_of_its_repository(tmp_path: Path) -> None:
    """Also where the repository has some: the class of transformers is taken."""
    ensure_torchaudio()
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    mark = tmp_path / "executed"
    code = write_own_encoder(tmp_path / "code", mark=mark)
    folder = tmp_path / "known"
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Wav2Vec2Model(Wav2Vec2Config(**size, intermediate_size=8)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModel": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(settings))
    for path in code.glob("*.py"):
        (folder / path.name).write_text(path.read_text())
    upstream = load_upstream(f"hf:{folder}")
    assert type(upstream.model).__name__ == "Wav2Vec2Model" and not mark.exists()


def test_the_flag_does_nothing_without_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ensure_torchaudio()
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    HubertModel(HubertConfig(**size, intermediate_size=8)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    load_upstream(f"hf:{tmp_path}", trust_remote_code=True)
    assert not warnings_in(caplog)


def test_other_upstreams_do_not_have_the_flag() -> None:
    with user_error("unknown-key", where="trust_remote_code"):
        load_upstream("hubert_tiny", trust_remote_code=True)


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("org/model", "org/model", None),
        ("org/model@main", "org/model", "main"),
        ("org/model@refs/pr/1", "org/model", "refs/pr/1"),
    ],
)
def test_names_with_revisions(text: str, name: str, revision: str | None) -> None:
    assert Repository.parse(text) == Repository(name, revision)


def test_a_folder_may_have_an_at_sign_and_has_no_revision(tmp_path: Path) -> None:
    folder = tmp_path / "a@b"
    folder.mkdir()
    assert Repository.parse(str(folder)) == Repository(str(folder))
    with user_error("conflicting-options", fix="@main"):
        Repository.parse(f"{folder}@main")


@pytest.mark.parametrize("text", ["", "@main", "org/model@"])
def test_names_without_a_part(text: str) -> None:
    with user_error("missing-option", where="-u hf:"):
        Repository.parse(text)


def test_a_run_keeps_the_flag_and_other_commands_ask_for_it(
    tiny_corpus: Path,
    manifest_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SUPERB_DATA", str(tiny_corpus))
    monkeypatch.setenv("S3PRL_MTL_CACHE", str(manifest_cache))
    folder, run = write_own_encoder(tmp_path / "own"), tmp_path / "run"
    settings = (
        "runner.test_last=false,,scheduler=null,,ks.downstream_expert.datarc.num_workers=0,,"
        "runner.eval_step=99"
    )
    words = ["-u", f"hf:{folder}", "-d", "ks", "-p", str(run), "-o", settings, "--steps"]
    assert main(["train", *words, "1"]) == 2
    assert main(["train", *words, "1", "--trust_remote_code"]) == 0
    assert read_yaml(run / "config.yaml", "")["upstream"]["trust_remote_code"] is True
    said = "Python code of"
    assert (run / "log.txt").read_text().count(said) == 1
    assert main(["train", "-e", str(run), "--steps", "2"]) == 0
    assert (run / "states-2.ckpt").is_file()
    assert (run / "log.txt").read_text().count(said) == 2
    audio = str(next(tiny_corpus.rglob("*.wav")))
    capsys.readouterr()
    for flags, status in (([], 2), (["--trust_remote_code"], 0)):
        given: list[list[str]] = [
            ["predict", str(run), audio, *flags],
            ["export", str(run), "--format", "transformers", "-o", f"{tmp_path}/o{status}", *flags],
        ]
        for one in given:
            assert main([*one, "--verbose"]) == status
            text = " ".join(capsys.readouterr().err.split())
            assert ("[code-untrusted]" in text) == (status == 2)
