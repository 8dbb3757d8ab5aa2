"""Random noise, reverberation and speed of waveforms, by lhotse's effects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
import torch
from lhotse.audio.mixer import AudioMixer
from lhotse.augmentation import ReverbWithImpulseResponse, Speed
from torch import Generator, Tensor

from s3prl_mtl.data.archives import open_file
from s3prl_mtl.data.audio import SAMPLE_RATE, read_audio, resample
from s3prl_mtl.data.folders import absolute, list_audio
from s3prl_mtl.errors import UserError

T = TypeVar("T")

Effect = Callable[[Tensor], Tensor]
"""Changes a waveform (samples,), possibly its length."""


class Perturbation:
    """Change waveforms at random: first their speed, then the room, then noise.

    Args:
        noise: a folder of audio files of noise, of any length and format; None for none. An
            utterance gets a random part of a random file, repeated if it is too short.
        snr: lowest and highest signal-to-noise ratio in dB, uniformly distributed.
        reverb: a folder of room impulse responses; None for none. The level is kept.
        speeds: factors of the speed, each as likely; tempo and pitch change, as with `sox speed`.
        probability: of noise, and of reverberation.

    Raises:
        UserError: a value is out of range, or a folder does not exist or has no audio.
    """

    def __init__(
        self,
        noise: Path | None = None,
        snr: Sequence[float] = (5.0, 20.0),
        reverb: Path | None = None,
        speeds: Sequence[float] = (),
        probability: float = 1.0,
    ) -> None:
        _check(len(snr) == 2 and snr[0] <= snr[1], "snr", snr, "Give two numbers, the lower first.")
        in_range = all(0.5 <= speed <= 2 for speed in speeds)
        _check(in_range, "speed", speeds, "Give factors from 0.5 to 2.")
        _check(0 <= probability <= 1, "probability", probability, "Give a number from 0 to 1.")
        self.snr = snr
        self.speeds = speeds
        self.probability = probability
        self._noises = _files(noise, "noise")
        self._rooms = _files(reverb, "reverb")

    def draw(self, generator: Generator) -> Effect:
        """A random effect.

        Args:
            generator: of all its random numbers.
        """
        chance = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
        speed = _chosen(self.speeds, chance[0])
        has_room, has_noise = (draw < self.probability for draw in chance[1:3])
        room = _chosen(self._rooms, chance[3]) if has_room else None
        noise = _chosen(self._noises, chance[4]) if has_noise else None
        snr = self.snr[0] + chance[5] * (self.snr[1] - self.snr[0])
        start = float(torch.rand((), generator=generator, dtype=torch.float64))

        def effect(waveform: Tensor) -> Tensor:
            samples = waveform.numpy()[None]
            if speed is not None and speed != 1.0:
                samples = Speed(factor=speed)(samples, SAMPLE_RATE)
            if room is not None:
                response = read_audio(room).numpy()[None]
                reverberate = ReverbWithImpulseResponse(rir_generator=lambda nsource: response)
                samples = reverberate(samples, SAMPLE_RATE)
            if noise is not None:
                mixer = AudioMixer(samples, SAMPLE_RATE)
                mixer.add_to_mix(_part(noise, samples.shape[1], start), snr=snr)
                samples = mixer.mixed_audio
            peak = np.abs(samples).max(initial=0.0)
            # Clipping would be another distortion.
            return torch.from_numpy(samples[0] / max(1.0, peak)).to(waveform.dtype)

        return effect


def _check(is_right: bool, key: str, value: object, fix: str) -> None:
    if not is_right:
        raise UserError(
            f"perturb.{key} is {value}.", where=f"perturb.{key}", fix=fix, code="invalid-value"
        )


def _chosen(values: Sequence[T], chance: float) -> T | None:
    return values[int(chance * len(values))] if len(values) else None


def _files(folder: Path | None, key: str) -> list[Path]:
    if folder is None:
        return []
    root = absolute(folder)
    files = [root / name for name in list_audio(root)]
    if not files:
        raise UserError(
            "The folder has no audio files.",
            where=f"perturb.{key}: {root}",
            fix="Name a folder with audio files, also in folders below it.",
            code="corpus-empty",
        )
    return files


def _part(path: Path, samples: int, start: float) -> np.ndarray:
    """Part of an audio file, float32 (1, samples) at 16 kHz, repeated if it is shorter.

    Args:
        path: the file.
        samples: of the part.
        start: where it begins, as a fraction of the possible places.
    """
    with soundfile.SoundFile(open_file(path)) as file:
        wanted = math.ceil(samples * file.samplerate / SAMPLE_RATE) + 1
        file.seek(int(start * max(0, file.frames - wanted)))
        part = torch.from_numpy(file.read(wanted, dtype="float32", always_2d=True)).mean(dim=1)
        part = resample(part, file.samplerate)
    return np.resize(part.numpy(), samples)[None]
