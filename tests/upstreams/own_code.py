"""Repositories of transformers whose models have code of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIGURATION = """
from transformers import PreTrainedConfig

class OwnConfig(PreTrainedConfig):
    model_type = "own-encoder"

    def __init__(self, width=6, layers=2, **rest):
        super().__init__(**rest)
        self.width, self.layers = width, layers
"""
MODELLING = """
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_own import OwnConfig

class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.front = torch.nn.Conv1d(1, config.width, 400, 320)
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(config.width, config.width) for _ in range(config.layers)
        )
        self.post_init()

    def _states(self, waves):
        states = [self.front(waves[:, None]).transpose(1, 2)]
        for layer in self.layers:
            states.append(torch.tanh(layer(states[-1])))
        return states
"""
OF_TRANSFORMERS = """
    def forward(self, input_values, output_hidden_states=False, return_dict=True):
        states = self._states(input_values)
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))
"""
WITH_LENGTHS = """
    def forward(self, audio, audio_lens):
        assert audio_lens.tolist() == [audio.shape[1]] * len(audio)
        states = self._states(audio)
        return {"encoder_out": 2 * states[-1], "intermediate_hidden_states": states}
"""


def write_own_encoder(folder: Path, lengths: bool = False, mark: Path | None = None) -> Path:
    """Write a repository with code of its own.

    Args:
        folder: the repository, created here.
        lengths: the model takes waveforms and their lengths, as SPEAR does, and has no settings of
            a feature extractor.
        mark: a file that the code creates when it is executed.
    """
    folder.mkdir(parents=True)
    touch = "" if mark is None else f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    (folder / "configuration_own.py").write_text(touch + CONFIGURATION)
    (folder / "modeling_own.py").write_text(
        touch + MODELLING + (WITH_LENGTHS if lengths else OF_TRANSFORMERS)
    )
    settings: dict[str, Any] = {
        "model_type": "own-encoder",
        "architectures": ["OwnModel"],
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModel": "modeling_own.OwnModel",
        },
        "width": 6,
        "layers": 2,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    if not lengths:
        preprocessing = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "do_normalize": False,
            "sampling_rate": 16_000,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    save_file(weights(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"front.weight": (6, 1, 400), "front.bias": (6,)}
    for layer in range(2):
        shapes |= {f"layers.{layer}.weight": (6, 6), f"layers.{layer}.bias": (6,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def expected_states(wav: torch.Tensor, lengths: bool = False) -> torch.Tensor:
    """``(3, frames, 6)``, computed without the code of the repository."""
    held = weights()
    frames = wav.unfold(0, 400, 320)
    states = [frames @ held["front.weight"][:, 0].T + held["front.bias"]]
    for layer in range(2):
        name = f"layers.{layer}"
        states.append(torch.tanh(states[-1] @ held[f"{name}.weight"].T + held[f"{name}.bias"]))
    if lengths:
        states[-1] = 2 * states[-1]
    return torch.stack(states)
