"""Noise, reverberation and speed of waveforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Generator, Tensor

from s3prl_mtl.data.perturbation import Perturbation
from tests.mistakes import user_error


def sine(hertz: float, seconds: float = 1.0) -> Tensor:
    time = torch.arange(int(16_000 * seconds)) / 16_000
    return 0.3 * torch.sin(2 * torch.pi * hertz * time)


def level(samples: Tensor) -> float:
    return 10 * float(samples.double().square().mean().log10())


def perturbed(waveform: Tensor, seed: int = 0, **settings: Any) -> Tensor:
    return Perturbation(**settings).draw(Generator().manual_seed(seed))(waveform)


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    """Files of different noise, length, rate and number of channels."""
    generator = np.random.default_rng(0)
    for name, rate, samples, channels in (("a", 16_000, 80_000, 1), ("deep/b", 44_100, 9_000, 2)):
        path = tmp_path / "noise" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, generator.normal(0, 0.05, (samples, channels)), rate)
    return tmp_path / "noise"


def test_noise_has_the_ratio_that_was_asked_for(noises: Path) -> None:
    speech = sine(200)
    before = speech.clone()
    ratios = []
    for seed in range(40):
        noise = perturbed(speech, seed, noise=noises, snr=(3.0, 12.0)) - speech
        ratios.append(level(speech) - level(noise))
    assert all(2.9 < ratio < 12.1 for ratio in ratios)
    assert min(ratios) < 5 and max(ratios) > 10
    assert torch.equal(speech, before)
    exact = perturbed(speech, noise=noises, snr=(7.0, 7.0)) - speech
    assert level(speech) - level(exact) == pytest.approx(7.0, abs=0.01)


def test_noise_differs_from_draw_to_draw_and_not_with_the_same_generator(noises: Path) -> None:
    found = [perturbed(sine(200), seed, noise=noises) for seed in (0, 1, 1)]
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])


def test_loud_noise_is_scaled_and_not_clipped(noises: Path) -> None:
    loud = 3 * sine(200)
    found = perturbed(loud, noise=noises, snr=(0.0, 0.0))
    assert found.abs().max() == pytest.approx(1.0)
    assert (found.abs() > 0.999).sum() < 5


def test_speed_changes_length_and_pitch() -> None:
    slow = perturbed(sine(400, 2.0), speeds=[0.8])
    assert len(slow) == 40_000
    spectrum = torch.fft.rfft(slow).abs()
    assert int(spectrum.argmax()) * 16_000 / len(slow) == pytest.approx(320, abs=1)


def test_all_speeds_are_drawn() -> None:
    lengths = {len(perturbed(sine(400), seed, speeds=[0.9, 1.0, 1.1])) for seed in range(30)}
    assert lengths == {17_778, 16_000, 14_546}


def test_reverberation_is_a_convolution_at_the_same_level(tmp_path: Path) -> None:
    response = np.zeros(4000)
    response[0], response[800] = 0.8, 0.4
    (tmp_path / "rooms").mkdir()
    soundfile.write(tmp_path / "rooms" / "1.flac", response, 16_000)
    speech = sine(213)
    found = perturbed(speech, reverb=tmp_path / "rooms")
    echo = speech.clone()
    echo[800:] += 0.5 * speech[:-800]
    expected = echo * (speech.square().mean() / echo.square().mean()).sqrt()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_the_probability_is_that_of_each_effect(noises: Path) -> None:
    speech = sine(200, 0.1)
    unchanged = [
        torch.equal(perturbed(speech, seed, noise=noises, probability=0.3), speech)
        for seed in range(200)
    ]
    assert 0.6 < np.mean(unchanged) < 0.8
    assert torch.equal(perturbed(speech, noise=noises, probability=0.0), speech)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"snr": (20.0, 5.0)}, r"perturb\.snr"),
        ({"snr": []}, r"perturb\.snr"),
        ({"snr": [5.0]}, r"perturb\.snr"),
        ({"speeds": [0.0]}, r"perturb\.speed"),
        ({"speeds": [1.0, 3.0]}, r"perturb\.speed"),
        ({"probability": 1.5}, r"perturb\.probability"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], where: str) -> None:
    with user_error("invalid-value", where=where):
        Perturbation(**settings)


def test_folders_without_audio_are_refused(tmp_path: Path) -> None:
    with user_error("file-missing", where="nowhere"):
        Perturbation(noise=tmp_path / "nowhere")
    with user_error("corpus-empty", where=r"perturb\.reverb"):
        Perturbation(reverb=tmp_path)
