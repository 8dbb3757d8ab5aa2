"""Encoders of transformers, with small checkpoints created by the tests."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.config import build_config
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.upstreams import load_upstream, rebuild_upstream
from tests.mistakes import user_error

ensure_torchaudio()
import transformers  # noqa: E402

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.5,
    "mask_time_prob": 0.5,
}
PRE_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


def raw(normalize: bool):
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)


def wav2vec2():
    config = transformers.Wav2Vec2Config(**SIZE)
    return transformers.Wav2Vec2Model(config), raw(True)


def wav2vec2_pre_norm():
    config = transformers.Wav2Vec2Config(**SIZE, **PRE_NORM)
    return transformers.Wav2Vec2Model(config), raw(True)


def hubert():
    return transformers.HubertModel(transformers.HubertConfig(**SIZE)), raw(False)


def hubert_for_ctc():
    return transformers.HubertForCTC(transformers.HubertConfig(**SIZE)), raw(True)


def wavlm():
    return transformers.WavLMModel(transformers.WavLMConfig(**SIZE)), raw(False)


def data2vec():
    size = {key: held for key, held in SIZE.items() if key != "num_conv_pos_embeddings"}
    config = transformers.Data2VecAudioConfig(**size, conv_pos_kernel_size=7)
    return transformers.Data2VecAudioModel(config), raw(True)


def unispeech_sat():
    return transformers.UniSpeechSatModel(transformers.UniSpeechSatConfig(**SIZE)), raw(True)


def wav2vec2_bert():
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = transformers.Wav2Vec2BertConfig(**{key: SIZE[key] for key in keys})
    return transformers.Wav2Vec2BertModel(config), transformers.SeamlessM4TFeatureExtractor()


def whisper():
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        vocab_size=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        max_source_positions=150,
    )
    return transformers.WhisperModel(config), transformers.WhisperFeatureExtractor(chunk_length=3)


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "wav2vec2": wav2vec2,
    "wav2vec2_pre_norm": wav2vec2_pre_norm,
    "hubert": hubert,
    "hubert_for_ctc": hubert_for_ctc,
    "wavlm": wavlm,
    "data2vec": data2vec,
    "unispeech_sat": unispeech_sat,
    "wav2vec2_bert": wav2vec2_bert,
    "whisper": whisper,
}


def make(kind: str, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, extractor = MAKERS[kind]()
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("huggingface")

    def _saved(kind: str) -> Path:
        return folder / kind if (folder / kind).exists() else make(kind, folder / kind)

    return _saved


def waveforms(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(samples, generator=generator) for samples in lengths]


def by_transformers(folder: Path, wav: Tensor) -> Tensor:
    """The hidden states of one utterance as transformers itself gives them, ``(L, T, D)``."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = extractor(wav.numpy(), sampling_rate=16_000, return_tensors="pt")
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    return torch.cat([*output.hidden_states[:-1], output.last_hidden_state])


@pytest.mark.parametrize("kind", MAKERS)
def test_hidden_states_are_those_of_transformers_for_each_utterance_alone(kind: str, saved):
    folder = saved(kind)
    upstream = load_upstream(f"hf:{folder}")
    found = upstream.hidden_size, upstream.num_hidden_states, upstream.downsample_rate
    assert found == (32, 3, 320)
    wavs = waveforms(9000, 16_000, 9000, 4001)
    with torch.no_grad():
        hidden = upstream(wavs)
    for wav, states in zip(wavs, hidden.split(), strict=True):
        wanted = by_transformers(folder, wav)
        if kind == "whisper":  # It encodes a whole window.
            wanted = wanted[:, : -(-len(wav) // 320)]
        torch.testing.assert_close(states, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", MAKERS)
def test_encoders_are_trained_with_all_hidden_states_and_no_masking(kind: str, saved):
    upstream = load_upstream(f"hf:{saved(kind)}").train()
    for module in upstream.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config = upstream.model.config
    for name in ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    for module in upstream.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    wavs = waveforms(12_000)
    hidden = upstream(wavs)
    with torch.no_grad():
        torch.testing.assert_close(hidden.states, upstream.eval()(wavs).states)
    weights = torch.randn(hidden.states.shape, generator=torch.Generator().manual_seed(1))
    (weights * hidden.states).sum().backward()
    without = [
        name
        for name, parameter in upstream.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert [name for name in without if "masked_spec_embed" not in name] == []


@pytest.mark.parametrize("kind", MAKERS)
def test_encoders_are_rebuilt_without_their_folder(kind: str, tmp_path: Path):
    folder = make(kind, tmp_path / kind)
    upstream = load_upstream(f"hf:{folder}")
    with torch.no_grad():
        for parameter in upstream.parameters():
            parameter.add_(0.01)
    torch.save({"info": upstream.checkpoint_info, "state": upstream.state_dict()}, tmp_path / "run")
    shutil.rmtree(folder)
    run = torch.load(tmp_path / "run", weights_only=True)
    state = torch.get_rng_state()
    rebuilt = rebuild_upstream(run["info"]).eval()
    assert torch.equal(torch.get_rng_state(), state)
    rebuilt.load_state_dict(run["state"])
    wavs = waveforms(8000, 5000)
    with torch.no_grad():
        assert torch.equal(rebuilt(wavs).states, upstream(wavs).states)
    assert rebuilt.checkpoint_info == run["info"]


def test_waveforms_are_normalised_as_the_preprocessor_config_says(saved, tmp_path: Path):
    """Scaling a waveform has no effect if it is normalised, else the effect of a closed form."""
    wav = waveforms(8000)[0]
    normalised = load_upstream(f"hf:{saved('wav2vec2')}")
    with torch.no_grad():
        once, louder = normalised([wav]).states, normalised([3 * wav + 0.1]).states
    torch.testing.assert_close(once, louder, atol=1e-3, rtol=1e-3)
    folder = tmp_path / "without"
    shutil.copytree(saved("wav2vec2"), folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_normalize": False}))
    plain = load_upstream(f"hf:{folder}")
    by_hand = (wav - wav.mean()) / np.sqrt(wav.var(correction=0).item() + 1e-7)
    with torch.no_grad():
        torch.testing.assert_close(plain([by_hand]).states, once, atol=1e-4, rtol=1e-4)
        assert (plain([wav]).states - plain([3 * wav + 0.1]).states).abs().max() > 1e-3


def test_parameters_have_transformers_names_in_checkpoints(saved):
    upstream = load_upstream(f"hf:{saved('hubert')}")
    theirs = transformers.AutoModel.from_pretrained(saved("hubert"))
    assert set(upstream.state_dict()) == set(theirs.state_dict())
    theirs.load_state_dict(upstream.state_dict(), strict=True)


def test_a_loud_neighbour_of_the_same_length_has_no_effect(saved):
    upstream = load_upstream(f"hf:{saved('hubert')}")
    first, second = waveforms(8000, 8000)
    with torch.no_grad():
        one = upstream([first, second]).split()[0]
        two = upstream([first, 50 * second]).split()[0]
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_utterances_of_unsupported_lengths_are_named(saved):
    with user_error("audio-too-short", where=r"\b1\b.*\b2\b.*\b200\b"):
        load_upstream(f"hf:{saved('wav2vec2')}")(waveforms(8000, 200))
    with user_error("audio-too-long", where="-u hf:.*whisper") as caught:
        load_upstream(f"hf:{saved('whisper')}")(waveforms(64_000))
    assert re.search(r"4\.0 s.* 3 s", caught.value.what)


def broken(folder: Path, tmp_path: Path, change: Callable[[Path], None]) -> Path:
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def rewrite(**values: object) -> Callable[[Path], None]:
    def _rewrite(folder: Path) -> None:
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return _rewrite


def without_a_layer(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(
        {name: held for name, held in tensors.items() if "layers.1.attention" not in name},
        path,
        metadata={"format": "pt"},
    )


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            "upstream-failed",
            r"preprocessor_config\.json",
        ),
        (rewrite(sampling_rate=8000), "audio-rate", "8000 Hz"),
        (lambda folder: (folder / "config.json").write_text("{"), "upstream-failed", "config"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 50),
            "upstream-failed",
            "broken",
        ),
        (without_a_layer, "checkpoint-incomplete", r"layers\.1\.attention"),
    ],
)
def test_broken_folders_are_refused(change, code: str, named: str, saved, tmp_path: Path):
    folder = broken(saved("wav2vec2"), tmp_path, change)
    with user_error(code, where=f"-u hf:{folder}") as caught:
        load_upstream(f"hf:{folder}")
    assert re.search(named, str(caught.value))


def test_models_without_a_frame_rate_are_refused(tmp_path: Path):
    config = transformers.ASTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    transformers.ASTModel(config).save_pretrained(tmp_path)
    transformers.ASTFeatureExtractor().save_pretrained(tmp_path)
    with user_error("upstream-failed", where=f"-u hf:{tmp_path}"):
        load_upstream(f"hf:{tmp_path}")


def test_invalid_names_and_options_are_refused(saved, monkeypatch: pytest.MonkeyPatch):
    with user_error("conflicting-options", where="-k"):
        load_upstream(f"hf:{saved('hubert')}", "weights.pt")
    with user_error("missing-option", where="-u hf:"):
        load_upstream("hf:")
    with user_error("unknown-key", where="'layerdrop'", fix="'cache_dir'|cache_dir"):
        load_upstream(f"hf:{saved('hubert')}", layerdrop=0.1)

    def find_spec(name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with user_error("missing-package", where="hf:anything", fix=r"s3prl-mtl\[transformers\]"):
        load_upstream("hf:anything")


@pytest.mark.slow
def test_two_steps_train_all_parameters_and_resume_bit_for_bit(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    folder = make("wav2vec2", tmp_path / "encoder")
    nine = ["asr", "pr", "sf", "ks", "ic", "sid", "er", "sv", "sd"]
    config = build_config(
        flags={
            "upstream.name": f"hf:{folder}",
            "downstream": nine,
            "data": str(tiny_corpus),
            "cache_dir": str(manifest_cache),
            "device": "cpu",
            "runner.total_steps": 2,
            "runner.save_step": 1,
            "runner.max_keep": 5,
            "runner.eval_step": 100,
            "runner.test_last": False,
            "optimizer.lr": 1e-3,
            "scheduler.num_warmup_steps": 1,
        }
    )
    for task in nine:
        config[task]["downstream_expert"]["datarc"]["num_workers"] = 0
    for task in ("asr", "sf"):
        block = config[task]["downstream_expert"]["modelrc" if task == "asr" else "model"]
        block |= {"project_dim": 16}
        block["RNNs"] |= {"dim": [16, 16]}
    before = load_upstream(f"hf:{folder}").state_dict()
    MultiTaskRunner(config, tmp_path / "whole").train()
    whole = checkpoints.load(tmp_path / "whole" / "states-2.ckpt")
    after = {name.removeprefix("model."): held for name, held in whole.upstream.items()}
    still = [name for name, held in before.items() if torch.equal(after[name], held)]
    assert still == ["masked_spec_embed"]
    shutil.rmtree(folder)
    halfway = checkpoints.load(tmp_path / "whole" / "states-1.ckpt")
    MultiTaskRunner(config, tmp_path / "resumed", resume=halfway).train()
    resumed = checkpoints.load(tmp_path / "resumed" / "states-2.ckpt")
    for part in ("upstream", "featurizer"):
        for name, held in getattr(whole, part).items():
            assert torch.equal(getattr(resumed, part)[name], held), name
    for task in nine:
        for name, held in whole.tasks[task].head.items():
            assert torch.equal(resumed.tasks[task].head[name], held), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path):
    model, extractor = wav2vec2()
    model.encoder.layers[0].feed_forward.output_dense.bias.data[0] = value
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    with user_error("non-finite", where=str(tmp_path)) as caught:
        load_upstream(f"hf:{tmp_path}")
    assert "encoder.layers.0.feed_forward.output_dense.bias" in caught.value.what
