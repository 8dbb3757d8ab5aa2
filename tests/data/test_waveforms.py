"""Audio files become 16 kHz mono waveforms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, MultiCut, Recording
from lhotse.audio import AudioSource

from s3prl_mtl.data import UnreadableAudio, apply_gain, load_waveform, random_crop
from tests.mistakes import user_error


def cut_of(path, start=0.0, duration=None):
    header = soundfile.info(path)
    channels = list(range(header.channels))
    recording = Recording(
        path.stem,
        [AudioSource("file", channels, str(path))],
        header.samplerate,
        header.frames,
        header.frames / header.samplerate,
        channels,
    )
    kind, channel = (MonoCut, 0) if len(channels) == 1 else (MultiCut, channels)
    duration = recording.duration - start if duration is None else duration
    return kind(id=path.stem, start=start, duration=duration, channel=channel, recording=recording)


def sine(rate, seconds=1.0, frequency=440.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
def test_every_format_and_rate_gives_the_same_sine_at_16_khz(tmp_path, suffix, rate):
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, sine(rate), rate)
    waveform = load_waveform(cut_of(path))
    assert waveform.dtype == torch.float32 and waveform.dim() == 1
    assert abs(waveform.shape[0] - 16_000) <= (1 if suffix in (".wav", ".flac") else 1600)
    # Away from the ends (filter and codec transients) it is the sine at 16 kHz, up to a shift.
    middle = waveform[4000:12000].double()
    time = torch.arange(4000, 12000).double() / 16_000
    basis = torch.stack(
        [torch.sin(2 * math.pi * 440 * time), torch.cos(2 * math.pi * 440 * time)], 1
    )
    fit = torch.linalg.lstsq(basis, middle[:, None]).solution
    assert fit.norm().item() == pytest.approx(0.5, abs=0.01)
    residual = (basis @ fit - middle[:, None]).abs().max().item()
    assert residual < (2e-3 if suffix in (".wav", ".flac") else 0.1)


def test_channels_are_averaged(tmp_path):
    left, right = sine(16_000), 0.3 * sine(16_000, frequency=1000.0)
    soundfile.write(tmp_path / "s.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    waveform = load_waveform(cut_of(tmp_path / "s.wav"))
    np.testing.assert_allclose(waveform.numpy(), (left + right) / 2, atol=1e-6)


def test_a_cut_reads_only_its_stretch(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, 32_000)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    waveform = load_waveform(cut_of(tmp_path / "a.wav", start=0.5, duration=0.25))
    np.testing.assert_allclose(waveform.numpy(), samples[8000:12000], atol=1e-6)


def test_values_beyond_full_scale_are_clipped(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.0, 3.0, -3.0] * 400), 16_000, subtype="FLOAT")
    waveform = load_waveform(cut_of(tmp_path / "a.wav"))
    assert waveform.min() == -1.0 and waveform.max() == 1.0


def test_the_error_of_a_damaged_file_names_file_and_utterance(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 16_000), 16_000)
    cut = cut_of(path)
    path.write_bytes(b"this is text")
    with user_error("audio-unreadable", where=f"^{path}$") as caught:
        load_waveform(cut)
    assert isinstance(caught.value, UnreadableAudio) and caught.value.utterance_id == "a"


def test_non_finite_values_are_an_error(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(800, np.nan), 16_000, subtype="FLOAT")
    with user_error("audio-unreadable", where=r"a\.wav"):
        load_waveform(cut_of(tmp_path / "a.wav"))


def test_a_gain_of_minus_3_decibels_scales_by_its_amplitude_ratio():
    waveform = torch.tensor([0.5, -0.25])
    torch.testing.assert_close(apply_gain(waveform, -3.0), waveform * 0.7079457843841379)
    assert apply_gain(torch.tensor([0.9]), 20.0).item() == 1.0


def test_random_crops_reach_both_ends_and_stay_inside():
    waveform = torch.arange(10.0)
    generator = torch.Generator().manual_seed(0)
    crops = [random_crop(waveform, 4, generator) for _ in range(300)]
    assert {int(crop[0]) for crop in crops} == set(range(7))
    assert all(torch.equal(crop, torch.arange(4.0) + crop[0]) for crop in crops)


def test_a_waveform_shorter_than_the_crop_is_returned_whole():
    waveform = torch.arange(3.0)
    assert torch.equal(random_crop(waveform, 3, torch.Generator()), waveform)
    assert torch.equal(random_crop(waveform, 5, torch.Generator()), waveform)
