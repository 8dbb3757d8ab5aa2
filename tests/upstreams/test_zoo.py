"""Upstreams of s3prl's zoo that need no download, or load a small checkpoint."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.checkpoint.restore import encoder_weights
from s3prl_mtl.config import build_config
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.upstreams import Featurizer, load_upstream, rebuild_upstream
from s3prl_mtl.upstreams.strict_loading import load_strictly
from s3prl_mtl.upstreams.zoo import stored_files
from s3prl_mtl.upstreams.zoo.s3prl_hub import zoo_names
from tests.mistakes import user_error
from tests.upstreams.zoo_checkpoints import (
    MAKERS,
    SPECTROGRAM,
    make_checkpoint,
    of_s3prl,
    smaller_decoar,
)

WITHOUT_DOWNLOAD = {
    "baseline": (240, 1, 160),
    "spectrogram": (257, 1, 160),
    "fbank": (240, 1, 160),
    "fbank_no_cmvn": (240, 1, 160),
    "mfcc": (39, 1, 160),
    "mel": (80, 1, 160),
    "linear": (201, 1, 160),
    "customized_upstream": (8, 2, 1),
}
"""Width, number of hidden states and samples per frame, as s3prl's modules state them."""

WITH_SETTINGS = {
    "stft_mag": (
        {
            "spectrogram": {
                "n_fft": 512,
                "hop_length": 160,
                "win_length": 400,
                "window": "hann",
                "center": True,
                "log": True,
            }
        },
        257,
    ),
    "baseline_local": (SPECTROGRAM, 20),
}
"""Upstreams with a config file instead of a checkpoint: its contents, and the width."""

LARGE = "lighthubert_local"  # 20 M parameters; the others have thousands.
EACH = [pytest.param(name, marks=pytest.mark.slow if name == LARGE else []) for name in MAKERS]

STRIDES = {
    "apc_local": 160,
    "npc_local": 160,
    "cpc_local": 160,
    "wav2vec_local": 160,
    "mockingjay_local": 160,
    "tera_local": 160,
    "audio_albert_local": 160,
    "vq_wav2vec_custom": 160,
    "spec_augment_local": 160,
    "decoar_local": 160,
    "decoar_layers_local": 160,
}


@pytest.fixture(scope="module", autouse=True)
def small_sizes():
    with smaller_decoar():
        yield


def waveforms(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(samples, generator=generator) for samples in lengths]


def alone(expert, wav: Tensor) -> Tensor:
    """The hidden states of one utterance from s3prl's expert, ``(L, T, D)``."""
    with torch.no_grad():
        result = expert([wav])
    states = result.get("hidden_states")
    return torch.cat(list(states if states is not None else [result["last_hidden_state"]]))


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("zoo")

    def _checkpoint_of(name: str) -> Path:
        path = folder / f"{name}.pt"
        return path if path.exists() else make_checkpoint(name, path)

    return _checkpoint_of


@pytest.mark.parametrize("name", WITHOUT_DOWNLOAD)
def test_features_without_a_download_equal_s3prls(name: str):
    upstream = load_upstream(name)
    found = upstream.hidden_size, upstream.num_hidden_states, upstream.downsample_rate
    assert found == WITHOUT_DOWNLOAD[name]
    theirs = getattr(of_s3prl(f"{zoo_names()[name]}.hubconf"), name)().eval()
    theirs.load_state_dict({key: held for key, held in upstream.expert.state_dict().items()})
    wavs = waveforms(9000, 16_000, 9000, 4001)
    with torch.no_grad():
        together = upstream(wavs).split()
    for wav, states in zip(wavs, together, strict=True):
        torch.testing.assert_close(states, alone(theirs, wav), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_features_equal_s3prls_for_each_utterance_alone(name: str, checkpoint_of):
    path = checkpoint_of(name)
    theirs = getattr(of_s3prl(f"{zoo_names()[name]}.hubconf"), name)(ckpt=str(path)).eval()
    upstream = load_upstream(name, path)
    wavs = waveforms(9000, 16_000, 9000, 4001)
    with torch.no_grad():
        together = upstream(wavs).split()
    assert upstream.downsample_rate == STRIDES.get(name, 320)
    for wav, states in zip(wavs, together, strict=True):
        wanted = alone(theirs, wav)
        assert len(wanted) == upstream.num_hidden_states
        assert wanted.shape[-1] == upstream.hidden_size
        torch.testing.assert_close(states, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_encoders_of_the_zoo_are_trained(name: str, checkpoint_of):
    upstream = load_upstream(name, checkpoint_of(name)).train()
    for _ in range(3):  # LayerDrop would remove hidden states.
        hidden = upstream(waveforms(8000))
        assert len(hidden.states) == upstream.num_hidden_states
    weights = torch.randn(hidden.states.shape, generator=torch.Generator().manual_seed(1))
    (weights * hidden.states).sum().backward()
    moved = [p for p in upstream.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(moved) > len(list(upstream.parameters())) / 2


@pytest.mark.parametrize(
    ("name", "kept_elements"),
    [
        *((name, stored_files.MAX_STORED_ELEMENTS) for name in MAKERS if name != LARGE),
        ("wav2vec2_local", 0),
        pytest.param(LARGE, stored_files.MAX_STORED_ELEMENTS, marks=pytest.mark.slow),
        *(
            pytest.param(name, 0, marks=pytest.mark.slow)
            for name in MAKERS
            if name != "wav2vec2_local"
        ),
    ],
)
def test_encoders_are_rebuilt_without_their_file(
    name: str, kept_elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also if no tensor of the file is stored: all are in the state dict."""
    monkeypatch.setattr(stored_files, "MAX_STORED_ELEMENTS", kept_elements)
    path = make_checkpoint(name, tmp_path / "gone.pt")
    upstream = load_upstream(name, path)
    with torch.no_grad():
        for parameter in upstream.parameters():
            parameter.add_(0.01)
    torch.save({"info": upstream.checkpoint_info, "state": upstream.state_dict()}, tmp_path / "run")
    path.unlink()
    saved = torch.load(tmp_path / "run", weights_only=True)
    rebuilt = rebuild_upstream(saved["info"]).eval()
    rebuilt.load_state_dict(saved["state"])
    wavs = waveforms(8000, 5000)
    with torch.no_grad():
        assert torch.equal(rebuilt(wavs).states, upstream(wavs).states)
    assert rebuilt.checkpoint_info == saved["info"]


def test_a_run_of_an_earlier_version_is_rebuilt(tmp_path: Path):
    """It stored a local checkpoint under another key."""
    path = make_checkpoint("wavlm_local", tmp_path / "gone.pt")
    upstream = load_upstream("wavlm_local", path)
    path.unlink()
    info = upstream.checkpoint_info
    kept = {key: info[key] for key in ("kind", "name", "ckpt", "model_config")}
    rebuilt = rebuild_upstream({**kept, "skeleton": info["files"][str(path)]["skeleton"]})
    rebuilt.load_state_dict(upstream.state_dict())
    with torch.no_grad():
        wavs = waveforms(8000)
        assert torch.equal(rebuilt.eval()(wavs).states, upstream(wavs).states)


@pytest.mark.parametrize("name", ["npc_local", "mae_ast_local"])
def test_batch_normalisation_keeps_its_statistics_in_training(name: str, checkpoint_of):
    upstream = load_upstream(name, checkpoint_of(name))
    before = {key: held.clone() for key, held in upstream.state_dict().items()}
    wavs = waveforms(8000, 8000, 12_000)
    with torch.no_grad():
        wanted = upstream(wavs).states
        for module in upstream.train().modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
            if isinstance(getattr(module, "dropout_module", None), torch.nn.Module):
                module.dropout_module.p = 0.0
        trained = upstream(wavs).states
    torch.testing.assert_close(trained, wanted, atol=1e-5, rtol=1e-5)
    for key, held in upstream.state_dict().items():
        assert torch.equal(held, before[key]), key


@pytest.mark.parametrize("name", EACH)
def test_parameters_have_s3prls_names_in_checkpoints(name: str, checkpoint_of):
    """s3prl's expert loads the weights of a run; earlier names load here."""
    path = checkpoint_of(name)
    upstream = load_upstream(name, path)
    theirs = getattr(of_s3prl(f"{zoo_names()[name]}.hubconf"), name)(ckpt=str(path))
    with torch.no_grad():
        for parameter in upstream.parameters():
            parameter.add_(0.01)
    saved = RunCheckpoint.capture({}, 1, {}, upstream, Featurizer(upstream), {})
    theirs.load_state_dict(saved.upstream, strict=True)
    earlier = {f"model.{key}": held for key, held in upstream.state_dict().items()}
    again = load_upstream(name, path)
    unchanged = {key: held.clone() for key, held in again.state_dict().items()}
    for names in (saved.upstream, earlier, theirs.state_dict()):
        again.load_state_dict(unchanged)
        load_strictly(again, encoder_weights(names), "it", "-i")
        for key, held in upstream.expert.state_dict().items():
            assert torch.equal(again.expert.state_dict()[key], held), key


def test_utterances_of_equal_length_do_not_affect_each_other(checkpoint_of):
    upstream = load_upstream("wav2vec2_local", checkpoint_of("wav2vec2_local"))
    first, second, other = waveforms(8000, 8000, 8000)
    with torch.no_grad():
        one = upstream([first, second]).split()[0]
        two = upstream([first, 50 * other]).split()[0]
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_an_utterance_without_a_frame_is_named(checkpoint_of):
    for name in ("wav2vec2_local", "wavlm_local"):
        upstream = load_upstream(name, checkpoint_of(name))
        with user_error("audio-too-short", where=r"\b1\b.*\b2\b.*\b200\b"):
            upstream(waveforms(8000, 200))
    with user_error("audio-too-short", where=r"\b1\b.*\b2\b.*\b200\b"):
        load_upstream("fbank")(waveforms(8000, 200))


@pytest.mark.parametrize("name", ["fbank", "mfcc", "spectrogram"])
def test_a_single_frame_that_cannot_be_normalised_is_too_short(name: str):
    """s3prl divides by the deviation over time, which is undefined for one frame."""
    upstream = load_upstream(name)
    with user_error("audio-too-short", where=r"\b2\b.*\b3\b.*\b401\b"):
        upstream(waveforms(8000, 16_000, 401))
    assert torch.isfinite(upstream(waveforms(8000, 720)).states).all()


@pytest.mark.parametrize(
    ("name", "ckpt", "code", "where"),
    [
        ("hf_hubert_custom", "/no/folder", "checkpoint-format", "-k /no/folder"),
        ("hf_wav2vec2_custom", __file__, "checkpoint-format", r"-k .*test_zoo\.py"),
        ("hf_wav2vec2_custom", str(Path(__file__).parent), "checkpoint-format", "-k .*upstreams"),
        ("wavlm_local", "/nowhere/wavlm.pt", "checkpoint-missing", r"-k /nowhere/wavlm\.pt"),
        ("fbank", __file__, "conflicting-options", "-k"),
        ("wavlm_base_plus", __file__, "conflicting-options", "-k"),
    ],
)
def test_a_checkpoint_that_does_not_fit_the_name_is_refused(
    name: str, ckpt: str, code: str, where: str
):
    with user_error(code, where=f"^{where}$"):
        load_upstream(name, ckpt)


@pytest.mark.parametrize(
    ("name", "module", "cause", "fix"),
    [
        ("wavlm_local", "wavlm", TypeError, "-k"),
        ("stft_mag", "log_stft", TypeError, "-g"),
        ("mos_wav2vec2", "mos_prediction", ModuleNotFoundError, None),
        ("discretebert", "roberta", AttributeError, None),
    ],
)
def test_an_upstream_that_cannot_be_built_is_named(
    name: str, module: str, cause: type[Exception], fix: str | None
):
    with user_error("upstream-failed", where=rf"s3prl\.upstream\.{module}$", fix=fix) as caught:
        load_upstream(name)
    assert isinstance(caught.value.__cause__, cause)
    assert repr(name) in caught.value.what


def test_a_model_that_fails_on_a_waveform_is_named(monkeypatch: pytest.MonkeyPatch):
    def forward(_expert, _wavs):
        raise ModuleNotFoundError("No module named 'einops'")

    monkeypatch.setattr(of_s3prl("example.expert").UpstreamExpert, "forward", forward)
    with user_error("upstream-failed", where=r"s3prl\.upstream\.example$") as caught:
        load_upstream("customized_upstream")
    assert "'customized_upstream'" in caught.value.what and "einops" in caught.value.what


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["tera_local", "distiller_local", "wavlm_local"])
def test_nothing_in_a_checkpoint_is_executed(name: str, checkpoint_of, tmp_path: Path):
    """Some of s3prl's modules load with `weights_only=False`."""
    states = torch.load(checkpoint_of(name), weights_only=True)
    states["more"] = Trap(tmp_path / "sprung")
    torch.save(states, tmp_path / "trap.pt")
    with user_error("upstream-failed") as caught:
        load_upstream(name, tmp_path / "trap.pt")
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)
    assert not (tmp_path / "sprung").exists()
    with contextlib.suppress(pickle.UnpicklingError):
        torch.load(tmp_path / "trap.pt", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "part", "key"),
    [
        ("wav2vec2_local", "model_cfg", "conv_feature_layers"),
        ("wavlm_local", "cfg", "conv_feature_layers"),
        ("vq_wav2vec_custom", "model_cfg", "conv_aggregator_layers"),
    ],
)
def test_code_in_a_setting_is_not_executed(
    name: str, part: str, key: str, checkpoint_of, tmp_path: Path
):
    """s3prl passes these settings to `eval`."""
    states = torch.load(checkpoint_of(name), weights_only=True)
    states[part][key] += f" + [__import__('pathlib').Path({str(tmp_path / 'sprung')!r}).touch()]"
    torch.save(states, tmp_path / "trap.pt")
    with user_error("torch-file-refused"):
        load_upstream(name, tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def run_config(corpus: Path, cache: Path, steps: int, **flags):
    settings = {
        "downstream": ["ks", "er", "sd"],
        "data": str(corpus),
        "cache_dir": str(cache),
        "device": "cpu",
        "runner.total_steps": steps,
        "runner.save_step": 1,
        "runner.max_keep": 5,
        "runner.eval_step": 100,
        "runner.test_last": False,
        "optimizer.lr": 1e-3,
        "scheduler.num_warmup_steps": 1,
    }
    config = build_config(flags=settings | flags)
    for task in ("ks", "er", "sd"):
        config[task]["downstream_expert"]["datarc"]["num_workers"] = 0
    return config


def test_an_encoder_of_the_zoo_trains_and_resumes_bit_for_bit(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    path = make_checkpoint("wavlm_local", tmp_path / "wavlm.pt")
    flags = {"upstream.name": "wavlm_local", "upstream.ckpt": str(path)}
    config = run_config(tiny_corpus, manifest_cache, 2, **flags)
    before = load_upstream("wavlm_local", path).state_dict()
    MultiTaskRunner(config, tmp_path / "whole").train()
    whole = checkpoints.load(tmp_path / "whole" / "states-2.ckpt")
    changed = [
        n for n, held in before.items() if not torch.equal(whole.upstream[f"model.{n}"], held)
    ]
    # LayerDrop may leave out layers in both steps.
    assert len(changed) > len(before) / 4
    path.unlink()
    halfway = checkpoints.load(tmp_path / "whole" / "states-1.ckpt")
    MultiTaskRunner(config, tmp_path / "resumed", resume=halfway).train()
    resumed = checkpoints.load(tmp_path / "resumed" / "states-2.ckpt")
    for part in ("upstream", "featurizer"):
        for name, held in getattr(whole, part).items():
            assert torch.equal(getattr(resumed, part)[name], held), name
    for task in ("ks", "er", "sd"):
        for name, held in whole.tasks[task].head.items():
            assert torch.equal(resumed.tasks[task].head[name], held), name


def test_heads_train_on_features_without_parameters(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = run_config(tiny_corpus, manifest_cache, 1, **{"upstream.name": "fbank"})
    MultiTaskRunner(config, tmp_path / "run").train()
    saved = checkpoints.load(tmp_path / "run" / "states-1.ckpt")
    assert saved.tasks["ks"].head["projector.weight"].shape == (256, 240)
    assert MultiTaskRunner(config, tmp_path / "run", resume=saved).step == 1


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_settings_of_a_module_come_from_a_file(name: str, tmp_path: Path):
    settings, width = WITH_SETTINGS[name]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    upstream = load_upstream(name, model_config=settings)
    assert (upstream.hidden_size, upstream.downsample_rate) == (width, 160)
    make = getattr(of_s3prl(f"{zoo_names()[name]}.hubconf"), name)
    theirs = make(model_config=str(tmp_path / "settings.yaml")).eval()
    wavs = waveforms(9000, 16_000, 4001)
    with torch.no_grad():
        together = upstream(wavs).split()
    for wav, states in zip(wavs, together, strict=True):
        torch.testing.assert_close(states, alone(theirs, wav), atol=1e-4, rtol=1e-4)
