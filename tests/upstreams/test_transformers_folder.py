"""`-u hubert -k FOLDER`: our encoder with the weights of transformers' HuBERT."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams import (
    Hubert,
    hubert_from_state,
    load_upstream,
    read_fairseq_checkpoint,
    write_fairseq_checkpoint,
)
from s3prl_mtl.upstreams.hubert.transformers_format import their_parameters
from tests.mistakes import user_error

ensure_torchaudio()
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CASES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": LARGE,
    "batch norm": {"conv_pos_batch_norm": True},
    "batch norm, large": {**LARGE, "conv_pos_batch_norm": True},
    # As mhubert-base-25hz: a frame every 40 ms.
    "25 Hz": {
        "conv_dim": (16,) * 8,
        "conv_kernel": (10, 3, 3, 3, 3, 2, 2, 2),
        "conv_stride": (5, 2, 2, 2, 2, 2, 2, 2),
        "num_feat_extract_layers": 8,
        "conv_pos_batch_norm": True,
    },
    "odd": {"hidden_act": "gelu_new", "num_conv_pos_embeddings": 7, "conv_dim": (12,) * 7},
    "relu": {"hidden_act": "relu", "mask_time_prob": 0.0},
}


def make(folder: Path, kind: type = transformers.HubertModel, **settings: Any) -> Any:
    """Save a random model; biases, norms and statistics are random, too."""
    torch.manual_seed(0)
    normalize = settings.pop("normalize", False)
    config = transformers.HubertConfig(**{**SIZE, **settings})
    model = kind(config).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point() and value.dim() == 1:
                value += 0.2 * torch.randn_like(value)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    return model


def waveforms() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, generator=generator) / 5 for n in (9_000, 16_000, 1_303, 5_000)]


@torch.no_grad()
def their_states(model: Any, waveform: Tensor, normalize: bool = False) -> Tensor:
    """``(layers + 1, frames, width)``; the last is transformers' last_hidden_state."""
    heard = (waveform - waveform.mean()) / waveform.std(correction=0) if normalize else waveform
    output = model(heard[None], output_hidden_states=True)
    return torch.cat([*output.hidden_states[:-1], output.last_hidden_state])


@torch.no_grad()
def assert_equal_features(ours: Any, theirs: Any, normalize: bool = False) -> None:
    found = ours(waveforms()).split()
    for one, wav in zip(found, waveforms(), strict=True):
        wanted = their_states(theirs, wav, normalize)
        torch.testing.assert_close(one, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_utterance_has_the_features_of_transformers(
    case: str, normalize: bool, tmp_path: Path
) -> None:
    theirs = make(tmp_path, normalize=normalize, **CASES[case])
    ours = load_upstream("hubert", tmp_path)
    assert isinstance(ours, Hubert)
    assert ours.downsample_rate == (640 if case == "25 Hz" else 320)
    assert_equal_features(ours, theirs, normalize)


@pytest.mark.parametrize("case", ["base", "batch norm"])
def test_features_do_not_depend_on_the_batch_in_training_either(case: str, tmp_path: Path) -> None:
    no_dropout = dict.fromkeys(
        ["hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"], 0.0
    )
    make(tmp_path, **CASES[case], **no_dropout)
    ours = load_upstream("hubert", tmp_path).train()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    together = ours(waveforms()).split()
    for one, wav in zip(together, waveforms(), strict=True):
        torch.testing.assert_close(one, ours([wav]).states, atol=1e-4, rtol=0)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name]), name
    sum(states.square().mean() for states in together).backward()
    without = [n for n, p in ours.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == ["mask_emb"]


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("old_names", [True, False])
def test_both_names_of_weight_norm_and_both_kinds_of_file(
    safe: bool, old_names: bool, tmp_path: Path
) -> None:
    theirs = make(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for new, old in (("parametrizations.weight.original0", "weight_g"),
                     ("parametrizations.weight.original1", "weight_v")):  # fmt: skip
        both = [f"encoder.pos_conv_embed.conv.{name}" for name in (new, old)]
        value = next(weights.pop(name) for name in both if name in weights)
        weights[both[old_names]] = value
    if safe:
        save_file(weights, tmp_path / "model.safetensors")
    else:
        torch.save(weights, tmp_path / "pytorch_model.bin")
    assert_equal_features(load_upstream("hubert", tmp_path), theirs)
    # The file of weights means its folder.
    name = "model.safetensors" if safe else "pytorch_model.bin"
    assert_equal_features(load_upstream("hubert", tmp_path / name), theirs)


def test_weights_in_parts(tmp_path: Path) -> None:
    theirs = make(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    parts = {name: f"model-0000{1 + i % 2}.safetensors" for i, name in enumerate(weights)}
    for part in set(parts.values()):
        save_file({n: w for n, w in weights.items() if parts[n] == part}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    assert_equal_features(load_upstream("hubert", tmp_path), theirs)


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [
        (transformers.HubertForCTC, "lm_head.weight"),
        (transformers.HubertForSequenceClassification, "classifier.weight"),
    ],
)
def test_the_encoder_of_a_model_with_a_head(
    kind: type, left_out: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make(tmp_path, kind, vocab_size=20)
    with caplog.at_level(logging.INFO):
        ours = load_upstream("hubert", tmp_path)
    assert left_out in caplog.text
    assert_equal_features(ours, whole.hubert)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    make(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    half = {name: value.half() for name, value in weights.items()}
    save_file(half, tmp_path / "model.safetensors")
    ours = load_upstream("hubert", tmp_path)
    assert {value.dtype for value in ours.parameters()} == {torch.float32}


def test_published_folders_leave_out_settings_with_default_values(tmp_path: Path) -> None:
    """`save_pretrained` of old versions wrote all settings, some conversions only a few."""
    theirs = make(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    kept = {key: value for key, value in settings.items() if key in SIZE or key == "model_type"}
    path.write_text(json.dumps(kept))
    assert_equal_features(load_upstream("hubert", tmp_path), theirs)


@pytest.mark.parametrize("case", ["base", "25 Hz"])
def test_the_encoder_goes_through_fairseqs_format_and_a_run(case: str, tmp_path: Path) -> None:
    make(tmp_path / "theirs", **CASES[case])
    ours = load_upstream("hubert", tmp_path / "theirs")
    assert isinstance(ours, Hubert)
    write_fairseq_checkpoint(tmp_path / "ours.pt", ours)
    header = read_fairseq_checkpoint(tmp_path / "ours.pt").header
    assert header is not None
    # fairseq 0.12.2 refuses settings that it does not know.
    assert ("conv_pos_batch_norm" in header["cfg"]["model"]) == (case == "25 Hz")
    again = load_upstream("hubert", tmp_path / "ours.pt")
    rebuilt = hubert_from_state(ours.checkpoint_info, ours.state_dict()).eval()
    with torch.no_grad():
        expected = ours(waveforms()).states
        assert torch.equal(again(waveforms()).states, expected)
        assert torch.equal(rebuilt(waveforms()).states, expected)


@pytest.mark.parametrize("case", ["base", "large", "batch norm", "25 Hz"])
def test_what_is_exported_is_what_was_loaded(case: str, tmp_path: Path) -> None:
    make(tmp_path, **CASES[case])
    ours = load_upstream("hubert", tmp_path)
    assert isinstance(ours, Hubert)
    found = their_parameters(ours.config, ours.state_dict())
    weights = load_file(tmp_path / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"model_type": "wav2vec2"}, "model_type"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"feat_extract_activation": "relu"}, "feat_extract_activation"),
        ({"feat_proj_layer_norm": False}, "feat_proj_layer_norm"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm"),
    ],
)
def test_other_models_are_refused_with_the_flag_that_loads_them(
    settings: dict[str, Any], where: str, tmp_path: Path
) -> None:
    make(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with user_error("checkpoint-format", where, rf"-u hf:{tmp_path}"):
        load_upstream("hubert", tmp_path)


def test_a_projection_between_equal_widths_is_the_identity_or_refused(tmp_path: Path) -> None:
    make(tmp_path, conv_dim=(16,) * 6 + (32,))
    with user_error("checkpoint-format", "conv_dim", "-u hf:"):
        load_upstream("hubert", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["feature_projection.projection.weight"] = torch.eye(32)
    weights["feature_projection.projection.bias"] = torch.zeros(32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.HubertModel.from_pretrained(tmp_path).eval()
    assert_equal_features(load_upstream("hubert", tmp_path), theirs)


def test_incomplete_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    fewer = {name: value for name, value in weights.items() if "layers.2" not in name}
    save_file(fewer, tmp_path / "model.safetensors")
    with user_error("checkpoint-mismatch"):
        load_upstream("hubert", tmp_path)
    save_file({**weights, "encoder.adapter.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with user_error("checkpoint-mismatch"):
        load_upstream("hubert", tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:1000])
    with user_error("checkpoint-format", "model.safetensors"):
        load_upstream("hubert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with user_error("checkpoint-incomplete", str(tmp_path)):
        load_upstream("hubert", tmp_path)
    torch.save({"epoch": 3}, tmp_path / "pytorch_model.bin")
    with user_error("checkpoint-format", "pytorch_model.bin"):
        load_upstream("hubert", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    with user_error("audio-rate", "preprocessor_config.json"):
        load_upstream("hubert", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with user_error("file-missing", "preprocessor_config.json"):
        load_upstream("hubert", tmp_path)
    (tmp_path / "config.json").write_text("[")
    with user_error("file-malformed", "config.json"):
        load_upstream("hubert", tmp_path)
