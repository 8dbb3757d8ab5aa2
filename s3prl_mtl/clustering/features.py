"""Features of frames for k-means: MFCC, or the hidden states of a layer of an encoder."""

from __future__ import annotations

import hashlib
import importlib
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3prl_mtl.clustering.audio import AudioList
from s3prl_mtl.data import MINIMUM_SAMPLES, SAMPLE_RATE, read_audio
from s3prl_mtl.errors import UserError
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams import Upstream

BATCH_SECONDS = 60.0
"""Audio that is encoded together."""

MFCC = "mfcc"
LAYER = re.compile(r"layer:(\d+)")


class FrameFeatures(ABC):
    """Features of waveforms.

    Attributes:
        rate: frames per second.
        minimum_samples: of a waveform with a frame.
    """

    rate: float
    minimum_samples: int

    @abstractmethod
    def __call__(self, waveforms: Sequence[Tensor]) -> list[np.ndarray]:
        """Waveforms (samples_i,) at 16 kHz -> features, float32 (frames_i, D)."""


class Mfcc(FrameFeatures):
    """The MFCC of HuBERT's first iteration: Kaldi's 13 coefficients, with first and second deltas.

    Windows of 25 ms every 10 ms, 23 mel bins, without energy; waveforms in [-1, 1]; no window is
    incomplete.

    Raises:
        UserError: torchaudio is not installed.
    """

    rate = 100.0
    minimum_samples = MINIMUM_SAMPLES

    def __init__(self) -> None:
        ensure_torchaudio()
        self._kaldi: Any = importlib.import_module("torchaudio.compliance.kaldi")
        self._deltas: Any = importlib.import_module("torchaudio.functional").compute_deltas

    def __call__(self, waveforms: Sequence[Tensor]) -> list[np.ndarray]:
        return [self._features(waveform) for waveform in waveforms]

    def _features(self, waveform: Tensor) -> np.ndarray:
        mfcc = self._kaldi.mfcc(waveform[None], sample_frequency=SAMPLE_RATE, use_energy=False)
        rows = [mfcc.t()]
        for _ in range(2):
            rows.append(self._deltas(rows[-1]))
        return torch.cat(rows).t().contiguous().numpy()


class HiddenLayer(FrameFeatures):
    """The hidden states of a layer.

    Args:
        upstream: the encoder, in evaluation mode.
        layer: its hidden state: 0 is the input of the first Transformer layer, 1 its output.

    Raises:
        UserError: the encoder has no such layer.
    """

    def __init__(self, upstream: Upstream, layer: int) -> None:
        if not 0 <= layer < upstream.num_hidden_states:
            raise UserError(
                f"The encoder has no layer {layer}.",
                where=f"--features layer:{layer}",
                fix=f"Give a number from 0 to {upstream.num_hidden_states - 1}.",
                code="invalid-value",
            )
        self.upstream = upstream
        self.layer = layer
        self.rate = SAMPLE_RATE / upstream.downsample_rate
        config = getattr(upstream, "config", None)
        self.minimum_samples = getattr(config, "receptive_field", MINIMUM_SAMPLES)

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[np.ndarray]:
        parameter = next(self.upstream.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        hidden = self.upstream([waveform.to(device) for waveform in waveforms])
        return [states.float().cpu().numpy() for states in hidden.layer(self.layer)]


def parse_features(text: str) -> int | None:
    """The layer of `layer:N`; None for `mfcc`.

    Raises:
        UserError: another word.
    """
    found = LAYER.fullmatch(text)
    if text != MFCC and found is None:
        raise UserError(
            f"Unknown features {text!r}.",
            where=f"--features {text}",
            fix="Give mfcc, or layer:N with the number of a hidden state.",
            code="invalid-value",
        )
    return None if found is None else int(found[1])


def digest(upstream: Upstream) -> str:
    """A digest of the parameters: equal for encoders with the same hidden states."""
    total = hashlib.blake2b(digest_size=16)
    for name, value in upstream.state_dict().items():
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def features_of(
    audio: AudioList, order: Sequence[int], features: FrameFeatures, threads: int = 2
) -> Iterator[np.ndarray]:
    """The features of files, float32 (frames, D) each; batches are read ahead.

    Args:
        audio: the files.
        order: indices of the files to read.
        features: of their waveforms.
        threads: that read audio.

    Raises:
        UserError: a file cannot be read, or the encoder refuses it.
    """
    with ThreadPoolExecutor(max_workers=threads) as pool:
        reading: deque[Future[list[Tensor]]] = deque()
        for batch in _batches(audio, order):
            reading.append(pool.submit(_read, audio, batch))
            if len(reading) > threads:
                yield from features(reading.popleft().result())
        while reading:
            yield from features(reading.popleft().result())


def _batches(audio: AudioList, order: Sequence[int]) -> Iterator[list[int]]:
    """Consecutive files of at most `BATCH_SECONDS` together."""
    batch: list[int] = []
    seconds = 0.0
    for index in order:
        duration = audio.files[index][1] / SAMPLE_RATE
        if batch and seconds + duration > BATCH_SECONDS:
            yield batch
            batch, seconds = [], 0.0
        batch.append(index)
        seconds += duration
    if batch:
        yield batch


def _read(audio: AudioList, batch: Sequence[int]) -> list[Tensor]:
    return [read_audio(audio.root / audio.files[index][0]) for index in batch]
