"""The encoder in this folder as X-ARES and HEAR 2021 call it; needs torch and transformers only.

X-ARES: the class `TunedEncoder`. HEAR: `load_model`, `get_timestamp_embeddings`,
`get_scene_embeddings`. `features.json` has the output that was chosen when s3prl-mtl wrote this
folder: a hidden state, or a weighted sum of all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

FOLDER = Path(__file__).resolve().parent


class TunedEncoder(nn.Module):
    """Waveforms of one length in, one embedding for each frame out.

    Waveforms longer than `chunk_seconds` are encoded in chunks, which bounds the memory: frames of
    different chunks do not see each other.

    Args:
        folder: with the files that were written beside this one.

    Attributes:
        sampling_rate: in Hz; `sample_rate` for HEAR.
        output_dim: width D; `scene_embedding_size` and `timestamp_embedding_size` for HEAR.
        hop_size_in_ms: time from one frame to the next.
        chunk_seconds: length of a chunk, which can be changed.
    """

    chunk_seconds = 30.0

    def __init__(self, folder: Path = FOLDER) -> None:
        super().__init__()
        settings = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        self.model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.weights: list[float] = settings["weights"]
        self.epsilon: float | None = settings["normalize_epsilon"]
        self.hop_samples: int = settings["hop_samples"]
        self.field_samples: int = settings["field_samples"]
        self.sampling_rate: int = settings["sampling_rate"]
        self.output_dim: int = self.model.config.hidden_size
        self.hop_size_in_ms = 1000 * self.hop_samples / self.sampling_rate
        self.sample_rate = self.sampling_rate
        self.scene_embedding_size = self.timestamp_embedding_size = self.output_dim

    def train(self, mode: bool = True) -> TunedEncoder:
        """Stay in evaluation mode, without dropout: the encoder is not trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Encode waveforms.

        Args:
            audio: (B, samples) in [-1, 1], or (samples,) for one. Less than one frame is padded.

        Returns:
            float32 (B, T, D).
        """
        audio = torch.atleast_2d(audio).to(next(self.model.parameters()))
        if self.epsilon is not None:
            audio = nn.functional.layer_norm(audio, audio.shape[1:], eps=self.epsilon)
        missing = self.field_samples - audio.shape[1]
        audio = nn.functional.pad(audio, (0, max(missing, 0)))
        frames = max(int(self.chunk_seconds * self.sampling_rate) // self.hop_samples, 1)
        # A chunk ends with all samples of its last frame.
        rest = self.field_samples - self.hop_samples
        step = frames * self.hop_samples
        starts = range(0, audio.shape[1] - self.field_samples + 1, step)
        return torch.cat([self._encode(audio[:, at : at + step + rest]) for at in starts], dim=1)

    def _encode(self, audio: Tensor) -> Tensor:
        output = self.model(audio, output_hidden_states=True)
        states = list(output.hidden_states)
        if output.last_hidden_state.shape == states[-1].shape:
            # In pre-norm encoders only this one is after the final normalisation.
            states[-1] = output.last_hidden_state
        total = torch.zeros_like(states[0])
        for weight, state in zip(self.weights, states, strict=True):
            if weight:
                total += weight * state
        return total


def load_model(model_file_path: str = "") -> TunedEncoder:
    """HEAR: the encoder.

    Args:
        model_file_path: the folder, or a file in it; empty for the folder of this file.
    """
    path = Path(model_file_path) if model_file_path else FOLDER
    return TunedEncoder(path if path.is_dir() else path.parent)


def get_timestamp_embeddings(audio: Tensor, model: TunedEncoder) -> tuple[Tensor, Tensor]:
    """HEAR: the embeddings of all frames.

    Args:
        audio: (B, samples) in [-1, 1] at `model.sample_rate`.
        model: of `load_model`.

    Returns:
        embeddings (B, T, D); the times of the centres of the frames in milliseconds, (B, T).
    """
    embeddings = model(audio)
    count, frames = embeddings.shape[:2]
    centres = torch.arange(frames, device=embeddings.device) * model.hop_samples
    times = (centres + model.field_samples / 2) * 1000 / model.sample_rate
    return embeddings, times.expand(count, frames)


def get_scene_embeddings(audio: Tensor, model: TunedEncoder) -> Tensor:
    """HEAR: one embedding for each waveform, the mean over its frames; (B, D)."""
    mean: Tensor = model(audio).mean(dim=1)
    return mean
