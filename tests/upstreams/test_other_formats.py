"""`-u hubert -k PATH` with checkpoints that are not fairseq's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from s3prl_mtl.errors import error_summary
from s3prl_mtl.export.s3prl_folder import converted
from s3prl_mtl.fileio.safe_torch import safe_load
from s3prl_mtl.upstreams import load_upstream, read_fairseq_checkpoint, write_fairseq_checkpoint
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert
from s3prl_mtl.upstreams.hubert.tiny import TINY_WEIGHTS
from tests.comparison import assert_same
from tests.mistakes import user_error

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hubert"
WEIGHTS = {"encoder.layers.0.attention.k_proj.weight": torch.ones(2, 2)}


def safetensors(path: Path) -> Path:
    """A file of safetensors with one weight, by the format's definition."""
    entry = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps(entry).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return path


def transformers_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "wavlm"}')
    safetensors(folder / "model.safetensors")
    torch.save(WEIGHTS, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("name", ["hubert", "hubert_tiny", "hubert_large_ll60k"])
@pytest.mark.parametrize("file", ["", "model.safetensors", "pytorch_model.bin"])
def test_another_model_of_transformers_is_refused_with_the_flag_that_loads_it(
    file: str, name: str, tmp_path: Path
):
    folder = transformers_folder(tmp_path / "model")
    with user_error("checkpoint-format", where="model_type", fix=rf"-u hf:{folder}\b"):
        load_upstream(name, folder / file)
    with user_error("checkpoint-format", where=r"^-k ", fix=str(folder)):
        read_fairseq_checkpoint(folder / file)


@pytest.mark.parametrize(
    "write", [safetensors, lambda path: torch.save(WEIGHTS, path)], ids=["safetensors", "torch"]
)
@pytest.mark.parametrize("name", ["weights", "weights.pt"])
def test_weights_alone_are_recognised_by_their_content(
    write: Callable[[Path], object], name: str, tmp_path: Path
):
    write(tmp_path / name)
    with user_error("checkpoint-format", where=name, fix="-k FOLDER"):
        load_upstream("hubert", tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        {"Format": 2, "Upstream": {}},
        {"Downstream": {}, "Featurizer": {}, "Args": None},
        {"Featurizer": {}, "Args": None, "Step": 1},
    ],
)
def test_a_run_is_refused_with_the_flags_that_start_from_it(content: dict, tmp_path: Path):
    torch.save(content, tmp_path / "states-1.ckpt")
    with user_error("checkpoint-format", fix="--init_upstream_ckpt .*states-1.ckpt"):
        load_upstream("hubert", tmp_path / "states-1.ckpt")


@pytest.mark.parametrize("case", ["base_style", "large_style", "odd_base", "odd_large"])
def test_a_file_that_s3prl_converted_is_loaded(case: str, tmp_path: Path):
    original = load_hubert(FIXTURES / f"{case}.pt")
    torch.save(converted(original), tmp_path / "upstream.pt")
    loaded = load_upstream("hubert", tmp_path / "upstream.pt")
    assert isinstance(loaded, Hubert)
    assert loaded.config == original.config
    assert_same(dict(original.state_dict()), dict(loaded.state_dict()))
    wavs = [torch.randn(1600)]
    with torch.no_grad():
        assert torch.equal(original.eval()(wavs).states, loaded(wavs).states)
    # fairseq's own format again, with the symbols of the pre-training targets.
    write_fairseq_checkpoint(tmp_path / "fairseq.pt", loaded)
    again = read_fairseq_checkpoint(tmp_path / "fairseq.pt").header["task_state"]["dictionaries"]
    held = original.fairseq_header["task_state"]["dictionaries"]
    assert [d["symbols"] for d in again] == [d["symbols"] for d in held]


def test_a_converted_file_of_another_model_is_refused(tmp_path: Path):
    content = converted(load_hubert(TINY_WEIGHTS))
    content["model_cfg"]["_name"] = "wav2vec2"
    torch.save(content, tmp_path / "upstream.pt")
    with user_error("checkpoint-format", where="wav2vec2"):
        load_upstream("hubert", tmp_path / "upstream.pt")


class Scripted(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_no_error_passes_on_the_advice_to_execute_a_file(tmp_path: Path):
    scripted, pickled = tmp_path / "scripted.pt", tmp_path / "pickled.pt"
    torch.jit.script(Scripted()).save(scripted)
    torch.save({"model": Scripted()}, pickled)
    for path, code in ((scripted, "checkpoint-format"), (pickled, "torch-file-refused")):
        with user_error(code, where=path.name) as caught:
            safe_load(path, kind="checkpoint")
        assert "weights_only" not in str(caught.value)
        with pytest.raises(Exception, match="weights_only") as advice:
            torch.load(path, weights_only=True)
        assert "weights_only" not in error_summary(advice.value)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(TINY_WEIGHTS, tmp_path / "tiny.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert isinstance(load_upstream("hubert", "~/tiny.pt"), Hubert)
