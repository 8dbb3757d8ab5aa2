"""The effects of SoX that experts apply, against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from s3prl_mtl.data import trim_silence
from s3prl_mtl.data.audio import UnreadableAudio
from s3prl_mtl.s3prl_compat.effects import EFFECTS, apply_effects
from s3prl_mtl.s3prl_compat.stand_ins import (
    apply_effects_file,
    apply_effects_tensor,
    info,
    load,
    save,
)
from tests.mistakes import user_error


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> torch.Tensor:
    times = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return (0.5 * torch.sin(2 * torch.pi * hertz * times)).float().unsqueeze(0)


def test_channels_are_averaged_into_one_and_one_is_copied_into_many():
    stereo = torch.tensor([[0.5, -1.0], [0.0, 0.5]])
    mono, rate = apply_effects(stereo, 8000, [["channels", "1"]])
    assert torch.equal(mono, torch.tensor([[0.25, -0.25]]))
    assert rate == 8000
    both, _ = apply_effects(mono, 8000, [["channels", "2"]])
    assert torch.equal(both, torch.tensor([[0.25, -0.25], [0.25, -0.25]]))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_a_tone_is_the_same_tone_at_another_rate(rate: int):
    resampled, new_rate = apply_effects(tone(rate), rate, [["rate", "16000"]])
    assert new_rate == 16000
    expected = tone(16000)
    assert resampled.shape[1] == pytest.approx(expected.shape[1], abs=1)
    inner = slice(800, 7000)
    torch.testing.assert_close(resampled[:, inner], expected[:, inner], atol=2e-3, rtol=0)


def test_gain_scales_and_clips():
    quieter, _ = apply_effects(tone(16000), 16000, [["gain", "-3.0"]])
    torch.testing.assert_close(quieter, tone(16000) * 10 ** (-3 / 20))
    louder, _ = apply_effects(tone(16000), 16000, [["gain", "20"]])
    assert louder.abs().max() == 1


def test_norm_scales_to_the_given_peak():
    whole, _ = apply_effects(tone(16000), 16000, [["norm"]])
    assert whole.abs().max().item() == pytest.approx(1)
    lower, _ = apply_effects(tone(16000), 16000, [["norm", "-6"]])
    assert lower.abs().max().item() == pytest.approx(10 ** (-6 / 20))
    nothing, _ = apply_effects(torch.zeros(1, 5), 16000, [["norm"]])
    assert torch.equal(nothing, torch.zeros(1, 5))


def test_silence_is_dropped_as_for_superb():
    quiet = torch.zeros(1, 8000)
    waveform = torch.cat([quiet, tone(16000), quiet, tone(16000), quiet], dim=1)
    words = ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]
    kept, _ = apply_effects(waveform, 16000, [words])
    assert torch.equal(kept[0], trim_silence(waveform[0]))
    assert kept.shape[1] == pytest.approx(2 * 8000 + 2 * 320, abs=400)


def test_pad_trim_and_reverse_move_samples():
    waveform = torch.arange(1.0, 5.0).unsqueeze(0)
    chain = [["pad", "1", "0.5"], ["trim", "0.5", "2"], ["reverse"]]
    moved, _ = apply_effects(waveform, 4, chain)
    padded = [0, 0, 0, 0, 1, 2, 3, 4, 0, 0]
    assert moved.tolist() == [padded[2:10][::-1]]
    rest, _ = apply_effects(waveform, 4, [["trim", "0.5"]])
    assert rest.tolist() == [[3, 4]]


@pytest.mark.parametrize(
    "effect",
    [
        ["vad", "-T", "0.25"],
        ["gain", "-n"],
        ["rate", "-h", "16000"],
        ["silence", "1", "0.1", "0.1%"],
        ["silence", "1", "0.1", "0.1%", "-1", "0.2", "0.1%"],
        ["channels", "3"],
        ["trim", "1", "2", "3"],
        ["reverse", "twice"],
    ],
)
def test_an_unsupported_effect_is_named(effect: list[str]):
    stereo = torch.zeros(2, 100)
    with user_error("not-supported", where=f"'{effect[0]} ", fix=", ".join(EFFECTS)):
        apply_effects(stereo, 16000, [effect])


def test_a_file_is_read_as_by_torchaudio(tmp_path: Path):
    samples = np.stack([np.linspace(-1, 0.5, 800), np.linspace(0.5, -1, 800)], axis=1)
    path = tmp_path / "stereo.flac"
    soundfile.write(path, samples, 8000, subtype="PCM_24")
    waveform, rate = load(path)
    assert (waveform.shape, rate, waveform.dtype) == ((2, 800), 8000, torch.float32)
    torch.testing.assert_close(waveform.numpy(), samples.T.astype(np.float32), atol=1e-6, rtol=0)
    part, _ = load(path, frame_offset=100, num_frames=50, channels_first=False)
    assert torch.equal(part, waveform[:, 100:150].t())
    header = info(path)
    assert (header.sample_rate, header.num_frames, header.num_channels) == (8000, 800, 2)
    assert (header.bits_per_sample, header.encoding) == (24, "PCM")

    mono, rate = apply_effects_file(str(path), [["channels", "1"], ["rate", "16000"]])
    assert (mono.shape, rate) == ((1, 1600), 16000)
    other, _ = apply_effects_tensor(
        waveform.t(), 8000, [["channels", "1"], ["rate", "16000"]], channels_first=False
    )
    assert torch.equal(other.t(), mono)
    save(tmp_path / "again.wav", waveform, 8000)
    torch.testing.assert_close(load(tmp_path / "again.wav")[0], waveform, atol=1e-4, rtol=0)


def test_a_file_that_is_not_audio_is_named(tmp_path: Path):
    (tmp_path / "text.wav").write_text("no audio")
    for function in (load, info, lambda path: apply_effects_file(path, [])):
        for name in ("text.wav", "gone.wav"):
            with user_error("audio-unreadable", where=str(tmp_path / name)) as caught:
                function(tmp_path / name)
            assert isinstance(caught.value, UnreadableAudio)
