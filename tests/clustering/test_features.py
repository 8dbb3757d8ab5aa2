"""MFCC against their definition; hidden states; reading in batches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from s3prl_mtl import load_upstream
from s3prl_mtl.clustering.audio import AudioList, listed
from s3prl_mtl.clustering.features import (
    HiddenLayer,
    Mfcc,
    digest,
    features_of,
    parse_features,
)
from tests.mistakes import user_error


def kaldi_mfcc(samples: np.ndarray) -> np.ndarray:
    """Kaldi's `compute-mfcc-feats` without dither and energy, from its definition.

    (samples,) -> (frames, 13), float64.
    """
    starts = range(0, len(samples) - 400 + 1, 160)
    window = (0.5 - 0.5 * np.cos(2 * math.pi * np.arange(400) / 399)) ** 0.85
    mel = 1127.0 * np.log(1.0 + np.arange(257) * 16_000 / 512 / 700.0)
    low, high = (1127.0 * math.log(1.0 + hertz / 700.0) for hertz in (20.0, 8_000.0))
    width = (high - low) / 24
    centres = low + width * np.arange(1, 24)
    bank = np.maximum(0.0, 1.0 - np.abs(mel[None] - centres[:, None]) / width)
    bank[:, 256] = 0.0  # Kaldi leaves out the Nyquist frequency.
    order, bands = np.arange(13)[:, None], np.arange(23)[None]
    cosine = np.cos(math.pi / 23 * (bands + 0.5) * order) * math.sqrt(2 / 23)
    cosine[0] = math.sqrt(1 / 23)
    lifter = 1 + 11 * np.sin(math.pi * np.arange(13) / 22)
    rows = []
    for start in starts:
        frame = samples[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        frame = (frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])) * window
        power = np.abs(np.fft.rfft(frame, 512)) ** 2
        energies = np.log(np.maximum(bank @ power, np.finfo(np.float32).eps))
        rows.append(lifter * (cosine @ energies))
    return np.array(rows)


def deltas(rows: np.ndarray) -> np.ndarray:
    """Regression over two frames on each side; the first and last frames are repeated."""
    padded = np.concatenate([rows[:1], rows[:1], rows, rows[-1:], rows[-1:]])
    shifted = [padded[2 + k : 2 + k + len(rows)] for k in (-2, -1, 1, 2)]
    return (-2 * shifted[0] - shifted[1] + shifted[2] + 2 * shifted[3]) / 10


@pytest.mark.parametrize("samples", [400, 7_999, 16_000])
def test_mfcc_are_those_of_kaldi_with_deltas(samples: int) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype(np.float32)
    noise += np.sin(np.arange(samples) / 5).astype(np.float32) / 3
    (found,) = Mfcc()([torch.from_numpy(noise)])
    expected = kaldi_mfcc(noise)
    first = deltas(expected)
    expected = np.concatenate([expected, first, deltas(first)], axis=1)
    assert found.shape == (1 + (samples - 400) // 160, 39)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_hidden_states_are_those_of_the_encoder() -> None:
    upstream = load_upstream("hubert_tiny")
    waveforms = [torch.randn(9_000) / 9, torch.randn(16_000) / 9]
    features = HiddenLayer(upstream, 2)
    found = features(waveforms)
    with torch.no_grad():
        expected = upstream(waveforms).split()
    assert features.rate == 50.0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other[2].numpy())


def test_refuses_layers_and_features_that_there_are_not() -> None:
    with user_error("invalid-value", "layer:4", "0 to 3"):
        HiddenLayer(load_upstream("hubert_tiny"), 4)
    assert parse_features("mfcc") is None
    assert parse_features("layer:11") == 11
    for text in ("fbank", "layer:", "layer:-1", "layer:x", "Layer:1"):
        with user_error("invalid-value", text):
            parse_features(text)


def test_the_digest_changes_with_any_parameter() -> None:
    upstream = load_upstream("hubert_tiny")
    before = digest(upstream)
    assert digest(load_upstream("hubert_tiny")) == before
    with torch.no_grad():
        upstream.encoder.layers[1].fc1.bias[0] += 1e-6
    assert digest(upstream) != before


def test_files_come_in_the_order_asked_for(tmp_path: Path) -> None:
    for number in range(7):
        tone = np.sin(np.arange(8_000 * (1 + number)) / (3 + number)) / 2
        soundfile.write(tmp_path / f"{number}.wav", tone, 16_000)
    audio = listed(tmp_path)
    assert [name for name, _ in audio.files] == [f"{number}.wav" for number in range(7)]
    features = Mfcc()
    alone = [next(features_of(audio, [index], features)) for index in range(7)]
    order = [5, 0, 6, 2, 1, 4, 3]
    for index, found in zip(order, features_of(audio, order, features), strict=True):
        np.testing.assert_array_equal(found, alone[index])


def test_an_error_of_a_file_is_raised(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "1.wav", np.zeros(8_000), 16_000)
    audio = AudioList(tmp_path, [("1.wav", 8_000), ("2.wav", 8_000)])
    with user_error("file-missing", "2.wav"):
        list(features_of(audio, [0, 1], Mfcc()))
