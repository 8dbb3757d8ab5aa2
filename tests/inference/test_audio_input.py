"""Audio input is checked alike for `predict` and `features`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import s3prl_mtl
from s3prl_mtl.upstreams import Featurizer
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder

WAVE = torch.sin(torch.arange(16_000) / 10)


@pytest.fixture(scope="module")
def run() -> s3prl_mtl.TrainedRun:
    """An encoder without heads."""
    encoder = s3prl_mtl.load_upstream("hubert_tiny")
    featurizer = Featurizer(encoder, "hidden_states")
    shared = SharedEncoder(encoder, featurizer, torch.device("cpu"), freeze=True, bf16=False)
    return s3prl_mtl.TrainedRun(shared, {}, 0, {}, {})


@pytest.fixture(params=["predict", "features"])
def call(run: s3prl_mtl.TrainedRun, request: pytest.FixtureRequest) -> Callable[..., Any]:
    return getattr(run, request.param)


@pytest.mark.parametrize("audio", ["a.wav", Path("a.wav"), b"a.wav", WAVE, None, {WAVE}, iter([])])
def test_audio_is_a_list(call, audio: Any):
    with pytest.raises(TypeError, match=rf"\b{type(audio).__name__}$"):
        call(audio)


@pytest.mark.parametrize("entry", [None, 3, [0.1, 0.2], WAVE.numpy(), b"a.wav"])
def test_its_entries_are_paths_and_waveforms(call, entry: Any):
    with pytest.raises(TypeError, match=rf"\b{type(entry).__name__}$"):
        call([WAVE, entry])


@pytest.mark.parametrize(
    "wave", [WAVE[:0], WAVE[None], WAVE.long(), torch.full((16_000,), torch.nan)]
)
def test_a_waveform_is_a_non_empty_vector_of_finite_floats(call, wave: torch.Tensor):
    with pytest.raises(ValueError):
        call([wave])


@pytest.mark.parametrize("rate", [44_100.5, 16_000.0, "16000", None, True])
def test_a_rate_is_an_integer(call, rate: Any):
    with pytest.raises(TypeError, match=f"{rate!r}$"):
        call([WAVE], sample_rate=rate)


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_is_positive(call, rate: int):
    with pytest.raises(ValueError, match=f"{rate}$"):
        call([WAVE], sample_rate=rate)


def test_no_audio_has_no_result(call):
    assert call([]) == []
    assert call(()) == []


@pytest.mark.parametrize("tasks", ["ks", [3], [None]])
def test_tasks_are_a_list_of_names(run: s3prl_mtl.TrainedRun, tasks: Any):
    with pytest.raises(TypeError):
        run.predict([WAVE], tasks)
