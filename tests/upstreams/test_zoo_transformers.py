"""s3prl's wrappers of transformers: `hf_hubert_custom` and `hf_wav2vec2_custom`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams import load_upstream, rebuild_upstream
from s3prl_mtl.upstreams.zoo.s3prl_hub import import_hub
from tests.mistakes import user_error
from tests.upstreams.test_huggingface import SIZE
from tests.upstreams.test_zoo import alone, waveforms

ensure_torchaudio()
import transformers  # noqa: E402

CLASSES = {
    "hf_hubert_custom": (transformers.HubertConfig, transformers.HubertModel),
    "hf_wav2vec2_custom": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
}


@pytest.fixture(params=CLASSES)
def folder_of(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    config, model = CLASSES[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(config(**SIZE, hidden_dropout=0.0)).save_pretrained(tmp_path / "encoder")
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    extractor.save_pretrained(tmp_path / "encoder")
    return request.param, tmp_path / "encoder"


def test_features_equal_s3prls_for_each_utterance_alone(folder_of):
    name, folder = folder_of
    theirs = getattr(import_hub(name.removesuffix("_custom")), name)(str(folder)).eval()
    upstream = load_upstream(name, folder)
    assert (upstream.hidden_size, upstream.num_hidden_states, upstream.downsample_rate) == (
        32,
        3,
        320,
    )
    wavs = waveforms(9000, 16_000, 9000)
    with torch.no_grad():
        together = upstream(wavs).split()
    for wav, states in zip(wavs, together, strict=True):
        torch.testing.assert_close(states, alone(theirs, wav), atol=1e-4, rtol=1e-4)


def test_the_folder_is_needed_once(folder_of, tmp_path: Path):
    name, folder = folder_of
    upstream = load_upstream(name, folder)
    with torch.no_grad():
        for parameter in upstream.parameters():
            parameter.add_(0.01)
    torch.save({"info": upstream.checkpoint_info, "state": upstream.state_dict()}, tmp_path / "run")
    shutil.rmtree(folder)
    saved = torch.load(tmp_path / "run", weights_only=True)
    rebuilt = rebuild_upstream(saved["info"]).eval()
    rebuilt.load_state_dict(saved["state"])
    wavs = waveforms(8000, 5000)
    with torch.no_grad():
        assert torch.equal(rebuilt(wavs).states, upstream(wavs).states)
    assert rebuilt.checkpoint_info == saved["info"]


def test_masking_and_layerdrop_are_off_in_training(folder_of):
    name, folder = folder_of
    upstream = load_upstream(name, folder).train()
    for module in upstream.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    wavs = waveforms(16_000)
    with torch.no_grad():
        wanted = upstream(wavs).states
        for _ in range(3):
            assert torch.equal(upstream(wavs).states, wanted)
    upstream(wavs).states.square().sum().backward()
    layers = [p for key, p in upstream.named_parameters() if "encoder.layers" in key]
    assert all(p.grad is not None for p in layers)


def test_the_error_names_the_model_that_cannot_be_loaded(
    folder_of, monkeypatch: pytest.MonkeyPatch
):
    """s3prl then tries another model's feature extractor and raises an error about that."""
    name, folder = folder_of
    hub = import_hub(name.removesuffix("_custom"))
    asked: list[str] = []

    def away(ckpt: str):
        asked.append(ckpt)
        raise OSError(f"{ckpt} is not there")

    monkeypatch.setattr(
        hub._UpstreamExpert.__init__.__globals__["Wav2Vec2FeatureExtractor"],
        "from_pretrained",
        away,
    )
    with user_error("checkpoint-format", where="^-k nobody/encoder$") as caught:
        load_upstream(name, "nobody/encoder")
    assert asked[0] == "nobody/encoder" and asked[1] not in str(caught.value)
    (folder / "preprocessor_config.json").unlink()
    with user_error("checkpoint-format", where=f"^-k {folder}$") as caught:
        load_upstream(name, folder)
    assert "preprocessor_config.json" in caught.value.what
