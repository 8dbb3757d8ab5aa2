"""Replacements for imports of s3prl's experts that no longer work.

torchaudio 2.9 dropped its backends, `set_audio_backend`, `info` and `sox_effects`; its `load` and
`save` need TorchCodec and FFmpeg. catalyst up to 21.5 does not import since Python 3.10, and pip
refuses the metadata of later versions; one expert needs one class of it.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TextIO

import soundfile
import torch
from torch import Tensor

from s3prl_mtl.data.audio import UnreadableAudio
from s3prl_mtl.errors import UserError
from s3prl_mtl.s3prl_compat.effects import apply_effects
from s3prl_mtl.s3prl_compat.sampler import DistributedSamplerWrapper
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio

logger = logging.getLogger(__name__)

_SUBTYPE_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}


def import_for_experts(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """The `import` statement in modules of experts; arguments as in `__import__`."""
    top, _, rest = name.partition(".")
    if level == 0 and top == "torchaudio":
        torchaudio = torchaudio_for_experts()
        if not rest:
            return torchaudio
        if rest == "sox_effects":
            return torchaudio.sox_effects if fromlist else torchaudio
        found = builtins.__import__(name, globals, locals, fromlist or (), level)
        return found if fromlist else torchaudio
    if level == 0 and name == "catalyst.data.sampler" and fromlist:
        return catalyst_sampler()
    return builtins.__import__(name, globals, locals, fromlist or (), level)


def print_for_experts(
    *values: object,
    sep: str | None = " ",
    end: str | None = "\n",
    file: TextIO | None = None,
    flush: bool = False,
) -> None:
    """The `print` in modules of experts: output for the terminal goes to the log."""
    if file is not None:
        builtins.print(*values, sep=sep, end=end, file=file, flush=flush)
    else:
        logger.info("%s", (" " if sep is None else sep).join(map(str, values)))


@functools.cache
def catalyst_sampler() -> ModuleType:
    """A module `catalyst.data.sampler` with the one class that s3prl's experts use."""
    module = ModuleType("catalyst.data.sampler")
    module.__dict__["DistributedSamplerWrapper"] = DistributedSamplerWrapper
    return module


class ExpertTorchaudio(ModuleType):
    """torchaudio for experts: the names set here, and torchaudio's own."""

    def __getattr__(self, name: str) -> Any:
        real = importlib.import_module("torchaudio")
        try:
            return getattr(real, name)
        except AttributeError:
            if importlib.util.find_spec(f"torchaudio.{name}") is None:
                raise
            return importlib.import_module(f"torchaudio.{name}")


@functools.cache
def torchaudio_for_experts() -> ModuleType:
    """torchaudio with `load`, `info`, `save`, the backend functions and `sox_effects` restored.

    Raises:
        UserError: torchaudio is not installed.
    """
    ensure_torchaudio()
    real = importlib.import_module("torchaudio")
    module = ExpertTorchaudio("torchaudio", real.__doc__)
    module.__path__ = list(real.__path__)
    effects = ModuleType("torchaudio.sox_effects")
    for place, functions in (
        (effects, (apply_effects_tensor, apply_effects_file)),
        (module, (load, info, save, set_audio_backend, get_audio_backend, list_audio_backends)),
    ):
        for function in functions:
            setattr(place, function.__name__, function)
    module.__dict__["sox_effects"] = effects
    return module


@dataclass(frozen=True)
class AudioMetaData:
    """The result of `torchaudio.info` before 2.9."""

    sample_rate: int
    num_frames: int
    num_channels: int
    bits_per_sample: int
    encoding: str


def load(
    uri: str | os.PathLike[str],
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
    buffer_size: int = 4096,
    backend: str | None = None,
) -> tuple[Tensor, int]:
    """Replace `torchaudio.load`, with libsndfile.

    Args:
        uri: the file.
        frame_offset: the first sample.
        num_frames: samples of each channel; -1 for all.
        normalize: must be true: raw integers are not supported.
        channels_first: (channels, samples) instead of (samples, channels).
        format, buffer_size, backend: ignored.

    Returns:
        float32 samples in [-1, 1], and the sample rate in Hz.

    Raises:
        UnreadableAudio: the file does not exist, or is not audio.
    """
    if not normalize:
        raise UserError(
            "torchaudio.load(normalize=False) is not supported.",
            where=str(uri),
            fix="Load samples in [-1, 1].",
            code="not-supported",
        )
    with _readable(uri):
        samples, rate = soundfile.read(
            uri, start=frame_offset, frames=num_frames, dtype="float32", always_2d=True
        )
    tensor = torch.from_numpy(samples)
    return (tensor.t().contiguous() if channels_first else tensor), int(rate)


def info(
    uri: str | os.PathLike[str],
    format: str | None = None,
    buffer_size: int = 4096,
    backend: str | None = None,
) -> AudioMetaData:
    """Replace `torchaudio.info`: read the header of a file; the other arguments are ignored.

    Raises:
        UnreadableAudio: the file does not exist, or is not audio.
    """
    with _readable(uri):
        header = soundfile.info(str(uri))
    bits = _SUBTYPE_BITS.get(header.subtype, 0)
    return AudioMetaData(
        header.samplerate, header.frames, header.channels, bits, header.subtype.partition("_")[0]
    )


def save(
    uri: str | os.PathLike[str],
    src: Tensor,
    sample_rate: int,
    channels_first: bool = True,
) -> None:
    """Replace `torchaudio.save`: write samples in [-1, 1] in the format of the file's suffix."""
    samples = src.detach().cpu()
    soundfile.write(uri, (samples.t() if channels_first else samples).numpy(), sample_rate)


def set_audio_backend(backend: str | None) -> None:
    """Replace a function of torchaudio; libsndfile is the only backend."""


def get_audio_backend() -> str:
    """The only backend."""
    return "soundfile"


def list_audio_backends() -> list[str]:
    """The only backend, in a list."""
    return ["soundfile"]


def apply_effects_tensor(
    tensor: Tensor, sample_rate: int, effects: list[list[str]], channels_first: bool = True
) -> tuple[Tensor, int]:
    """Replace `torchaudio.sox_effects.apply_effects_tensor`.

    Args:
        tensor: (channels, samples), or (samples, channels).
        sample_rate: in Hz.
        effects: each a name and its arguments; see :mod:`s3prl_mtl.s3prl_compat.effects`.
        channels_first: the layout of the tensor.

    Returns:
        The waveform in the same layout, and its sample rate in Hz.

    Raises:
        UserError: an effect, or a form of it, that is not supported.
    """
    waveform, rate = apply_effects(tensor if channels_first else tensor.t(), sample_rate, effects)
    return (waveform if channels_first else waveform.t()), rate


def apply_effects_file(
    path: str | os.PathLike[str],
    effects: list[list[str]],
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
) -> tuple[Tensor, int]:
    """Replace `torchaudio.sox_effects.apply_effects_file`.

    Raises:
        UnreadableAudio: the file does not exist, or is not audio.
        UserError: an effect, or a form of it, that is not supported.
    """
    waveform, rate = load(path, normalize=normalize)
    waveform, rate = apply_effects(waveform, rate, effects)
    return (waveform if channels_first else waveform.t()), rate


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in errors of libsndfile."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        reason = error.error_string if os.path.exists(path) else "it does not exist"
        raise UnreadableAudio(
            f"The audio file cannot be read: {reason.rstrip('.')}.",
            where=str(path),
            code="audio-unreadable",
        ) from error
