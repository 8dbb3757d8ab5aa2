"""`--format transformers` in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s3prl_mtl.export import export
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams import load_upstream
from s3prl_mtl.upstreams.hubert.config import ACTIVATIONS, HubertConfig
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from tests.export.tuned_runs import FIXTURES, HUBERTS, move, save_run, tuned, waveforms


def load(folder: Path) -> Any:
    ensure_torchaudio()
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "HubertModel"
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def their_states(model: Any, waveform: Tensor) -> Tensor:
    """``(layers + 1, frames, width)`` in our order; the last is transformers' last_hidden_state."""
    output = model(waveform[None], output_hidden_states=True)
    return torch.cat([*output.hidden_states[:-1], output.last_hidden_state])


@pytest.mark.parametrize("case", HUBERTS)
def test_transformers_gives_the_states_that_fairseq_gave(case: str, tmp_path: Path) -> None:
    truth = torch.load(FIXTURES / "export" / f"{case}.pt", weights_only=True)
    model = load(export(save_run(tmp_path, tuned(case)), "transformers", tmp_path / "out"))
    normalize = tuned(case).config.normalize
    for wav, wanted in zip(truth["wavs"], truth["hidden_states"], strict=True):
        heard = torch.nn.functional.layer_norm(wav, wav.shape) if normalize else wav
        torch.testing.assert_close(their_states(model, heard), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["base_style", "large_style"])
def test_only_a_pre_norm_encoder_has_its_last_state_before_the_final_norm(
    case: str, tmp_path: Path
) -> None:
    encoder = tuned(case)
    model = load(export(save_run(tmp_path, encoder), "transformers", tmp_path / "out"))
    wav = torch.nn.functional.layer_norm(waveforms()[2], (1303,))
    with torch.no_grad():
        output = model(wav[None], output_hidden_states=True)
        last = output.hidden_states[-1]
        if encoder.config.layer_norm_first:
            assert not torch.allclose(last, output.last_hidden_state, atol=1e-2)
            last = encoder.encoder.layer_norm(last)
    torch.testing.assert_close(last, output.last_hidden_state)


@pytest.mark.parametrize("level", [0.3, 0.05, 0.01])
@pytest.mark.parametrize("case", ["base_style", "large_style"])
def test_the_preprocessor_normalises_if_the_encoder_requires_it(
    case: str, level: float, tmp_path: Path
) -> None:
    """transformers adds 1e-7 to the variance where fairseq adds 1e-5; the rest is the same."""
    out = export(save_run(tmp_path, tuned(case)), "transformers", tmp_path / "out")
    model = load(out)
    from transformers import AutoFeatureExtractor

    preprocessor = AutoFeatureExtractor.from_pretrained(out)
    wav = level * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    heard = preprocessor(wav.numpy(), sampling_rate=16_000, return_tensors="pt").input_values[0]
    with torch.no_grad():
        wanted = tuned(case)([wav]).states
    if case == "base_style":
        assert torch.equal(heard, wav)
    else:
        variance = wav.var(correction=0)
        if level > 0.1:  # Loud enough that neither addend matters.
            torch.testing.assert_close(their_states(model, heard), wanted, atol=1e-4, rtol=0)
        heard = heard * torch.sqrt((variance + 1e-7) / (variance + 1e-5))
    torch.testing.assert_close(their_states(model, heard), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_has_an_equivalent(name: str, tmp_path: Path) -> None:
    config = HubertConfig(
        conv_feature_layers=((8, 10, 5), (12, 4, 4)),
        encoder_layers=2,
        encoder_embed_dim=8,
        encoder_ffn_embed_dim=16,
        encoder_attention_heads=2,
        conv_pos=3,
        conv_pos_groups=2,
        activation_fn=name,
    )
    torch.manual_seed(0)
    encoder = Hubert(config).eval()
    for layer in encoder.encoder.layers:
        layer.fc1.weight.data *= 50  # far from 0, where they all look alike
    move(encoder)
    model = load(export(save_run(tmp_path, encoder), "transformers", tmp_path / "out"))
    wav = waveforms()[2]
    with torch.no_grad():
        wanted = encoder([wav]).states
    torch.testing.assert_close(their_states(model, wav), wanted, atol=1e-4, rtol=0)


def test_an_encoder_without_a_projection_gets_an_identity(tmp_path: Path) -> None:
    encoder = load_upstream("hubert_tiny")
    assert isinstance(encoder, Hubert) and encoder.post_extract_proj is None
    model = load(export(save_run(tmp_path, encoder), "transformers", tmp_path / "out"))
    projection = model.feature_projection.projection
    assert torch.equal(projection.weight, torch.eye(96))
    assert not projection.bias.any()
    wav = waveforms()[3]
    with torch.no_grad():
        wanted = encoder([wav]).states
    torch.testing.assert_close(their_states(model, wav), wanted, atol=1e-4, rtol=0)


def test_training_settings_are_exported_and_masking_is_off(tmp_path: Path) -> None:
    encoder = tuned("base_style")
    out = export(save_run(tmp_path, encoder), "transformers", tmp_path / "out")
    settings = json.loads((out / "config.json").read_text())
    assert settings["layerdrop"] == 0.0
    assert settings["hidden_dropout"] == settings["attention_dropout"] == 0.1
    assert settings["apply_spec_augment"] is False
    model = load(out)
    assert torch.equal(model.masked_spec_embed, encoder.mask_emb)


def test_an_encoder_of_transformers_is_exported_in_its_format(tmp_path: Path) -> None:
    ensure_torchaudio()
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 4),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(0)
    Wav2Vec2Model(config).save_pretrained(tmp_path / "theirs")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "theirs")
    name = f"hf:{tmp_path / 'theirs'}"
    upstream = load_upstream(name)
    move(upstream)
    out = export(save_run(tmp_path / "run", upstream, name), "transformers", tmp_path / "out")
    again = load_upstream(f"hf:{out}")
    wav = waveforms()[2]
    with torch.no_grad():
        assert torch.equal(again([wav]).states, upstream([wav]).states)
    assert again.checkpoint_info is not None and upstream.checkpoint_info is not None
    assert again.checkpoint_info["preprocessing"] == upstream.checkpoint_info["preprocessing"]
