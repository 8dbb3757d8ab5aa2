"""Upstreams by name: built in, from plugins, from s3prl's zoo."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from s3prl_mtl.registry import plugins
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams import load_upstream, rebuild_upstream
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from s3prl_mtl.upstreams.hubert.fairseq_file import write_fairseq_checkpoint
from s3prl_mtl.upstreams.hubert.tiny import TINY_WEIGHTS, make_tiny
from s3prl_mtl.upstreams.zoo import s3prl_upstream as zoo
from tests.mistakes import user_error

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hubert"


def use_plugins(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    values = {"hubert_tiny": "s3prl_mtl.upstreams.builtin:hubert_tiny", **values}
    found = [EntryPoint(name, value, plugins.UPSTREAMS.group) for name, value in values.items()]

    def entry_points(group: str, name: str | None = None) -> EntryPoints:
        chosen = [entry for entry in found if name is None or entry.name == name]
        return EntryPoints(chosen if group == plugins.UPSTREAMS.group else [])

    monkeypatch.setattr(plugins, "entry_points", entry_points)


@pytest.mark.parametrize("name", ["hubert", "hubert_base", "hubert_large_ll60k", "hubert_tiny"])
def test_every_hubert_reads_a_local_checkpoint(name: str) -> None:
    truth = torch.load(FIXTURES / "base_style.expected.pt", weights_only=True)
    upstream = load_upstream(name, FIXTURES / "base_style.pt").eval()
    with torch.no_grad():
        states = upstream(truth["wavs"][:1]).states
    torch.testing.assert_close(states, truth["hidden_states"][0], atol=1e-4, rtol=0)
    assert (upstream.hidden_size, upstream.num_hidden_states) == (48, 4)
    assert upstream.downsample_rate == 320


def test_options_reach_the_upstream_and_misspelt_ones_are_refused() -> None:
    upstream = load_upstream("hubert_tiny", layerdrop=0.3, feature_grad_mult=0.0)
    assert isinstance(upstream, Hubert)
    assert upstream.config.encoder_layerdrop == 0.3
    assert upstream.config.feature_grad_mult == 0.0
    with user_error("unknown-key", where="'layer_drop' .*'hubert_tiny'", fix="'layerdrop'"):
        load_upstream("hubert_tiny", layer_drop=0.3)
    with user_error("unknown-key", where="'layerdrop' .*'fbank'"):
        load_upstream("fbank", layerdrop=0.3)


def test_unknown_name_is_refused_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with user_error("unknown-name", where="-u hubert_tinny", fix="'hubert_tiny'"):
        load_upstream("hubert_tinny")
    with user_error("unknown-name", where="-u fbnak", fix="'fbank'"):
        load_upstream("fbnak")
    use_plugins(monkeypatch, somebodys_encoder="somewhere:make")
    with user_error("unknown-name", fix="'somebodys_encoder'"):
        load_upstream("somebody_encoder")


@pytest.mark.parametrize("name", ["model.pt", "folder"])
def test_a_path_in_place_of_a_name_names_the_flags_that_load_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.touch()
    for fix in (f"-u hubert -k {path}", f"-u hf:{path}"):
        with user_error("unknown-name", where=f"-u {path}", fix=fix):
            load_upstream(str(path))


def test_a_name_unlike_all_others_is_not_answered_by_a_long_list() -> None:
    with user_error("unknown-name", fix="upstreams --all") as caught:
        load_upstream("qqqqqqqq")
    assert len(str(caught.value)) < 300


def test_plugin_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plugins(monkeypatch, fbank="s3prl_mtl.upstreams.builtin:hubert_tiny")
    assert load_upstream("fbank").hidden_size == 96  # It takes precedence over the zoo's.


def test_plugin_that_fails_to_import_does_not_affect_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_plugins(monkeypatch, broken="package_that_is_not_there.module:make")
    with user_error("plugin-broken", where="package_that_is_not_there"):
        load_upstream("broken")
    assert load_upstream("hubert_tiny").hidden_size == 96


def test_tiny_has_huberts_frame_rate_and_fits_the_package() -> None:
    upstream = load_upstream("hubert_tiny")
    assert isinstance(upstream, Hubert)
    assert upstream.config.receptive_field == 400
    assert upstream.downsample_rate == 320
    assert TINY_WEIGHTS.stat().st_size < 1.5e6


def test_tiny_is_the_file_that_was_pre_trained() -> None:
    """`run_scripts/pretrain_tiny.sh` printed this checksum; its log is beside it."""
    digest = hashlib.sha256(TINY_WEIGHTS.read_bytes()).hexdigest()
    assert digest == "e943479a8cd4fe947ad9f8c20cc1b97bdd4bf3ca403e3a94e981b9632391b658"


def test_tiny_is_reproducible(tmp_path: Path) -> None:
    for name in ("one.pt", "two.pt"):
        write_fairseq_checkpoint(tmp_path / name, make_tiny())
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()
    first, other = make_tiny().state_dict(), make_tiny(seed=1).state_dict()
    assert not torch.equal(first["mask_emb"], other["mask_emb"])


def test_initial_front_end_of_tiny_separates_tones() -> None:
    """The channel with the largest response to a tone rises with its frequency, in any phase."""
    model = make_tiny().eval()
    time = torch.arange(16_000) / 16_000
    strongest = []
    for hertz in (230.0, 530.0, 1270.0, 2570.0, 5130.0):
        for phase in (0.0, 1.0, 2.0):
            # Half silence, half tone: GroupNorm keeps what changes within the utterance.
            wav = torch.sin(2 * torch.pi * hertz * time + phase) * (time > 0.5)
            with torch.no_grad():
                frames = model.feature_extractor([wav], wav.dtype)
            rise = frames[30:45, :40].mean(0) - frames[:20, :40].mean(0)
            strongest.append(int(rise.argmax()))
    by_tone = [strongest[3 * tone : 3 * tone + 3] for tone in range(5)]
    assert all(max(bands) - min(bands) <= 1 for bands in by_tone)
    assert all(max(low) < min(high) for low, high in pairwise(by_tone))


@pytest.mark.parametrize(("name", "width", "rate"), [("fbank", 240, 160), ("mfcc", 39, 160)])
def test_baselines_of_the_zoo_load_without_network(name: str, width: int, rate: int) -> None:
    upstream = load_upstream(name).eval()
    assert (upstream.hidden_size, upstream.num_hidden_states) == (width, 1)
    assert upstream.downsample_rate == rate
    generator = torch.Generator().manual_seed(0)
    wavs = [0.1 * torch.randn(samples, generator=generator) for samples in (16_000, 24_003, 5000)]
    together = upstream(wavs)
    # Kaldi's frames: windows of 25 ms every 10 ms, none past the end.
    assert together.lengths == [(len(wav) - 400) // 160 + 1 for wav in wavs]
    for wav, states in zip(wavs, together.split(), strict=True):
        torch.testing.assert_close(states, upstream([wav]).states, atol=1e-4, rtol=1e-4)


def test_zoo_fbank_equals_kaldis() -> None:
    ensure_torchaudio()
    from torchaudio.compliance.kaldi import fbank

    wav = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    mel = fbank(
        wav[None], num_mel_bins=80, frame_length=25.0, frame_shift=10.0, sample_frequency=16_000
    )
    mel = (mel - mel.mean(0)) / mel.std(0)
    found = load_upstream("fbank")([wav]).states[0, :, :80]
    correlation = torch.corrcoef(torch.stack([mel.flatten(), found.flatten()]))[0, 1]
    assert correlation > 0.99


def test_zoo_upstream_is_rebuilt_from_plain_values() -> None:
    settings = {
        "kaldi": {
            "feat_type": "fbank",
            "fbank": {"num_mel_bins": 20, "frame_length": 25.0, "frame_shift": 10.0},
        },
        "delta": {"order": 0},
        "cmvn": {"use_cmvn": False},
    }
    upstream = load_upstream("baseline_local", model_config=settings)
    assert upstream.hidden_size == 20
    info = upstream.checkpoint_info
    assert info == {
        "kind": "zoo",
        "name": "baseline_local",
        "ckpt": None,
        "model_config": settings,
        "files": {},
        "one_by_one": False,
    }
    wav = [torch.linspace(-1, 1, 4000)]
    assert torch.equal(rebuild_upstream(info)(wav).states, upstream(wav).states)


def test_upstream_that_the_zoo_cannot_build_is_named() -> None:
    with user_error("upstream-failed", where=r"s3prl\.upstream\.baseline$") as caught:
        load_upstream("baseline_local")
    assert isinstance(caught.value.__cause__, TypeError)
    assert "'baseline_local'" in caught.value.what


def test_hubert_is_rebuilt_from_plain_values() -> None:
    upstream = load_upstream("hubert_tiny").eval()
    info = upstream.checkpoint_info
    assert info is not None
    rebuilt = rebuild_upstream(info).eval()
    rebuilt.load_state_dict(upstream.state_dict())
    wav = [torch.linspace(-1, 1, 4000)]
    assert torch.equal(rebuilt(wav).states, upstream(wav).states)
    with user_error("checkpoint-format"):
        rebuild_upstream({"kind": "wavlm"})


def test_zoo_of_s3prl_is_listed_without_importing_it() -> None:
    names = zoo.zoo_names()
    assert {"fbank", "mfcc", "wavlm_base", "wav2vec2_local"} <= set(names)
    assert not any(name.startswith("_") for name in names)


def test_missing_s3prl_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with user_error("missing-package", where="-u fbank", fix=r"s3prl-mtl\[s3prl\]"):
        load_upstream("fbank")


def test_torchaudio_imports_in_a_fresh_process() -> None:
    program = (
        "from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio\n"
        "ensure_torchaudio(); ensure_torchaudio()\n"
        "import torch, torchaudio\n"
        "print(torchaudio.functional.resample(torch.zeros(1, 160), 16000, 8000).shape[1])\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout.strip() == "80", answer.stderr


def test_broken_extension_is_replaced(tmp_path: Path) -> None:
    """A torchaudio whose extension raises OSError, as beside a CPU-only torch."""
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from . import _extension\nfrom ._extension import fail_if_no_align\n"
        "WORKS = not _extension._IS_TORCHAUDIO_EXT_AVAILABLE\n"
        "@fail_if_no_align\ndef align(): pass\n"
    )
    (package / "_extension.py").write_text("raise OSError('libcudart.so: cannot open')\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio\n"
        "ensure_torchaudio()\nimport torchaudio\nprint(torchaudio.WORKS)\n"
        "try: torchaudio.align()\nexcept RuntimeError as error: print(error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    lines = answer.stdout.splitlines()
    assert lines == ["True", "align needs torchaudio's compiled extension."], answer.stderr
