"""`--format xares` and `--format hear`: the module, alone and as the benchmarks call it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.cli.main import main
from s3prl_mtl.export import export
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams import Featurizer, load_upstream
from tests.export.tuned_runs import HEAD, layer_weights, save_run, tuned
from tests.mistakes import user_error
from tests.upstreams.own_code import write_own_encoder


def load_module(path: Path) -> Any:
    ensure_torchaudio()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(samples: int, count: int = 2) -> Tensor:
    return 0.1 * torch.randn(count, samples, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["base_style", "large_style"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return save_run(folder, tuned(request.param), heads={"ks": HEAD, "er": HEAD})


def encoder_of(run: Path) -> Any:
    return load_upstream_of(run).eval()


def load_upstream_of(run: Path) -> Any:
    from s3prl_mtl.export.saved_run import SavedRun

    return SavedRun.open(run).hubert()


@torch.no_grad()
def states_of(run: Path, wav: Tensor) -> Tensor:
    """``(layers + 1, frames, width)`` of the encoder of a run."""
    states: Tensor = encoder_of(run)([wav]).states
    return states


def wrapped(run: Path, out: Path, **options: Any) -> Any:
    return load_module(export(run, "xares", out, **options) / "xares_encoder.py").TunedEncoder()


def test_the_default_is_the_last_hidden_state(run: Path, tmp_path: Path) -> None:
    wavs = noise(16_000)
    encoder = wrapped(run, tmp_path / "out")
    found = encoder(wavs)
    for row, wav in zip(found, wavs, strict=True):
        torch.testing.assert_close(row, states_of(run, wav)[-1], atol=1e-5, rtol=1e-5)
    assert found.shape[2] == encoder.output_dim
    assert (encoder.sampling_rate, encoder.hop_size_in_ms) == (16_000, 20.0)
    torch.testing.assert_close(encoder(wavs[0]), found[:1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_layer_is_that_hidden_state(layer: int, run: Path, tmp_path: Path) -> None:
    wavs = noise(7_777, count=1)
    found = wrapped(run, tmp_path / "out", layer=layer)(wavs)
    wanted = states_of(run, wavs[0])[layer]
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("selection", ["hidden_states", "layer_results", "last_hidden_state"])
def test_a_task_is_its_input_in_the_run(selection: str, tmp_path: Path) -> None:
    upstream = tuned("base_style")
    run = save_run(tmp_path / "run", upstream, selection=selection, heads={"ks": HEAD})
    featurizer = Featurizer(upstream, selection)
    if featurizer.weights is not None:
        featurizer.weights.data = layer_weights(len(featurizer.weights))
    wavs = noise(5_000, count=1)
    found = wrapped(run, tmp_path / "out", task="ks")(wavs)
    with torch.no_grad():
        (wanted,) = featurizer(upstream([wavs[0]]))
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)


def test_long_waveforms_are_encoded_in_chunks_with_the_same_number_of_frames(
    run: Path, tmp_path: Path
) -> None:
    encoder = wrapped(run, tmp_path / "out")
    upstream = encoder_of(run)
    for samples in (399, 400, 15_999, 16_000, 16_079, 16_080, 16_400, 50_000):
        wavs = noise(samples, count=1)
        encoder.chunk_seconds = 1.0
        found = encoder(wavs)
        assert found.shape[1] == max(upstream.num_frames(samples), 1), samples
    # The first chunk has all samples of its 50 frames, and no others.
    if not upstream.config.normalize:
        torch.testing.assert_close(
            found[0, :50], states_of(run, wavs[0, :16_080])[-1], atol=1e-5, rtol=1e-5
        )


def test_the_encoder_stays_in_evaluation_mode(run: Path, tmp_path: Path) -> None:
    encoder = wrapped(run, tmp_path / "out").train()
    assert not any(module.training for module in encoder.modules())
    assert not encoder(noise(8_000)).requires_grad


def test_embeddings_of_hear(run: Path, tmp_path: Path) -> None:
    module = load_module(export(run, "hear", tmp_path / "out") / "hear_encoder.py")
    wavs = noise(16_000)
    for path in ("", str(tmp_path / "out"), str(tmp_path / "out" / "model.safetensors")):
        model = module.load_model(path)
        embeddings, times = module.get_timestamp_embeddings(wavs, model)
        torch.testing.assert_close(embeddings, model(wavs))
    # A frame sees 400 samples, which are 25 ms, and the next one begins 20 ms later.
    assert times.tolist() == [[12.5 + 20 * frame for frame in range(49)]] * 2
    scene = module.get_scene_embeddings(wavs, model)
    torch.testing.assert_close(scene, embeddings.mean(1))
    assert model.sample_rate == 16_000
    assert scene.shape == (2, model.scene_embedding_size) == (2, model.timestamp_embedding_size)


def test_the_folder_loads_in_transformers(run: Path, tmp_path: Path) -> None:
    out = export(run, "xares", tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "features.json",
        "model.safetensors",
        "preprocessor_config.json",
        "xares_encoder.py",
    }
    assert load_upstream(f"hf:{out}").hidden_size == encoder_of(run).hidden_size


@pytest.mark.slow
def test_the_module_needs_nothing_of_this_package(tmp_path: Path) -> None:
    out = export(save_run(tmp_path / "run", tuned("base_style")), "xares", tmp_path / "out")
    code = (
        "import sys; sys.modules['s3prl_mtl'] = None; sys.path.insert(0, '.')\n"
        "sys.modules['torchaudio'] = None\n"
        "import torch, xares_encoder\n"
        "print(xares_encoder.TunedEncoder()(torch.zeros(1, 50_000)).shape)"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-c", code]
    found = subprocess.run(words, cwd=out, env=kept, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("torch.Size([1, 156, ")


def test_x_ares_accepts_the_encoder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the check that its runner makes, and by its way of finding the class."""
    checker = pytest.importorskip("xares.audio_encoder_checker")
    out = export(run, "xares", tmp_path / "out", task="ks")
    module = load_module(out / "xares_encoder.py")
    # `attr_from_py_path(..., endswith="Encoder")` wants one name; its module imports far more.
    assert [name for name in dir(module) if name.endswith("Encoder")] == ["TunedEncoder"]
    assert checker.check_audio_encoder(module.TunedEncoder())


def test_hears_validator_accepts_the_module(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It asks whether a model is of tensorflow, which is not needed for that.
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.Module = type("Module", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    validate = pytest.importorskip("hearvalidator.validate")
    out = export(run, "hear", tmp_path / "out")
    monkeypatch.syspath_prepend(out)
    try:
        validate.ValidateModel("hear_encoder", str(out), "cpu")()
    finally:
        sys.modules.pop("hear_encoder", None)


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_does_not_exist(layer: int, run: Path, tmp_path: Path) -> None:
    with user_error("invalid-value", where=rf"--layer {layer}", fix="--layer 3"):
        export(run, "xares", tmp_path / "out", layer=layer)
    assert not (tmp_path / "out").exists()


def test_a_task_that_the_run_does_not_have(run: Path, tmp_path: Path) -> None:
    with user_error("unknown-name", where="--task asr"):
        export(run, "hear", tmp_path / "out", task="asr")


def test_a_task_with_layers_of_its_own_has_no_sum(
    tmp_path: Path, install: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "class DownstreamExpert:\n    wants_hidden_states = True\n"
    install(source, None)
    run = save_run(tmp_path / "run", tuned("base_style"), heads={"tones": HEAD})
    with user_error("not-supported", where="--task tones", fix="--layer"):
        export(run, "xares", tmp_path / "out", task="tones")


def test_options_of_other_formats(run: Path, tmp_path: Path) -> None:
    with user_error("conflicting-options", where="--layer"):
        export(run, "transformers", tmp_path / "out", layer=1)
    with user_error("conflicting-options", where="--layer and --task"):
        export(run, "xares", tmp_path / "out", layer=1, task="ks")
    with user_error("missing-option", where="--private"):
        export(run, "transformers", tmp_path / "out", private=True)
    words = ["export", str(run), "--format", "fairseq", "-o", str(tmp_path / "out")]
    assert main([*words, "--task", "ks"]) == 2


def test_an_encoder_with_code_of_its_own_has_no_wrapper(tmp_path: Path) -> None:
    name = f"hf:{write_own_encoder(tmp_path / 'own')}"
    upstream = load_upstream(name, trust_remote_code=True)
    run = save_run(tmp_path / "run", upstream, name)
    with user_error("not-supported", where=str(run), fix="--format transformers"):
        export(run, "xares", tmp_path / "out", trust_remote_code=True)
    with user_error("code-untrusted", where="checkpoint", fix="--trust_remote_code"):
        export(run, "transformers", tmp_path / "out")
    out = export(run, "transformers", tmp_path / "out", trust_remote_code=True)
    assert {"configuration_own.py", "modeling_own.py"} <= {path.name for path in out.iterdir()}
    again = load_upstream(f"hf:{out}", trust_remote_code=True)
    wav = noise(8_000, count=1)[0]
    with torch.no_grad():
        assert torch.equal(again([wav]).states, upstream([wav]).states)
    assert checkpoints.load(run / "states-40.ckpt").upstream_info is not None
