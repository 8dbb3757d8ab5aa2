"""Silence trimming equals SoX's `silence` effect, sample by sample."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from s3prl_mtl.data import trim_silence


def sox_silence(samples, threshold=0.001, seconds=0.1):
    """The effect as SoX runs it: one sample at a time, with hold-off buffers."""
    run = round(seconds * 16_000)
    out, window, holdoff, copying = [], deque([0.0] * 320, 320), [], False
    for sample in samples.astype(np.float64):
        window.append(sample**2)
        loud = (sum(window) / 320) ** 0.5 > threshold
        if not copying:
            holdoff = [*holdoff, sample] if loud else []
            if len(holdoff) >= run:
                out, holdoff, copying = out + holdoff, [], True
        elif loud:
            out, holdoff = [*out, *holdoff, sample], []
        else:
            holdoff = [*holdoff, sample]
            if len(holdoff) >= run:
                holdoff, copying, window = [], False, deque([0.0] * 320, 320)
    return np.array(out + (holdoff if copying else []), dtype=np.float32)


def speech_with_pauses(seed):
    generator = np.random.default_rng(seed)
    parts = []
    for _ in range(int(generator.integers(1, 7))):
        level = generator.choice([0.0, 0.0005, 0.0012, 0.3])
        length = int(generator.choice([40, 700, 1500, 1599, 1600, 1601, 1900, 4000]))
        parts.append(generator.uniform(-1, 1, length) * level * 3**0.5)
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.parametrize("seed", range(25))
def test_trimming_equals_sox_sample_by_sample(seed):
    samples = speech_with_pauses(seed)
    trimmed = trim_silence(torch.from_numpy(samples))
    np.testing.assert_array_equal(trimmed.numpy(), sox_silence(samples))


def test_silences_are_removed_and_short_pauses_kept():
    sound, pause, silence = torch.full((8000,), 0.2), torch.zeros(800), torch.zeros(8000)
    kept = trim_silence(torch.cat([silence, sound, pause, sound, silence, sound, silence]))
    # The window of 20 ms sees the sound for up to 320 samples after its end.
    assert 3 * 8000 + 800 <= kept.shape[0] <= 3 * 8000 + 800 + 2 * 320
    assert kept[0] == kept[7000] == torch.tensor(0.2)


def test_silence_is_removed_completely():
    assert trim_silence(torch.zeros(20_000)).shape == (0,)
    assert trim_silence(torch.zeros(0)).shape == (0,)


def test_continuous_sound_is_kept_completely():
    sound = torch.full((5000,), 0.5)
    assert torch.equal(trim_silence(sound), sound)
