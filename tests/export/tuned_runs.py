"""Checkpoints of runs whose encoder is one of the HuBERT fixtures, changed as training would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint, TaskCheckpoint
from s3prl_mtl.export.pretraining_head import PARTS
from s3prl_mtl.upstreams import Featurizer, Hubert, Upstream
from s3prl_mtl.upstreams.hubert.encoder import build_hubert
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert

FIXTURES = Path(__file__).parents[1] / "fixtures"
HUBERTS = ["base_style", "large_style", "odd_base", "odd_large", "odd_frozen"]
HEAD = {"projector.weight": torch.arange(6.0).view(2, 3), "best_score": torch.zeros(1)}


def tuned(case: str) -> Hubert:
    """A fixture's encoder with every parameter moved, the same on every machine."""
    model = load_hubert(FIXTURES / "hubert" / f"{case}.pt").eval()
    move(model)
    return model


def without_head(model: Hubert) -> Hubert:
    """The encoder without the parameters of pre-training, as in a folder of transformers."""
    config = replace(model.config, final_proj_dim=0, label_embeddings=(0, 0), target_glu=False)
    state = {
        name: value for name, value in model.state_dict().items() if not name.startswith(PARTS)
    }
    return build_hubert(config, state, None, where="the test").eval()


@torch.no_grad()
def move(model: torch.nn.Module) -> None:
    for index, parameter in enumerate(model.parameters()):
        places = torch.arange(parameter.numel(), dtype=torch.float64)
        change = 0.02 * torch.cos(places * 0.7 + index)
        parameter += change.view(parameter.shape).to(parameter)


def layer_weights(count: int) -> Tensor:
    return torch.linspace(-1.0, 1.5, count)


def save_run(
    folder: Path,
    upstream: Upstream,
    name: str = "hubert",
    selection: str = "hidden_states",
    heads: dict[str, dict[str, Any]] | None = None,
    step: int = 40,
) -> Path:
    """Write `states-<step>.ckpt` of a run; `folder` is the run's."""
    featurizer = Featurizer(upstream, selection)
    if featurizer.weights is not None:
        featurizer.weights.data = layer_weights(len(featurizer.weights))
    config = {
        "upstream": {
            "name": name,
            "ckpt": None,
            "config": None,
            "feature_selection": selection,
            "freeze": False,
        }
    }
    tasks = {task: TaskCheckpoint(head, None, {}) for task, head in (heads or {}).items()}
    saved = RunCheckpoint.capture(config, step, {}, upstream, featurizer, tasks)
    checkpoints.save(saved, folder / f"states-{step}.ckpt")
    return folder


def waveforms() -> list[Tensor]:
    """Speech-like in level, of awkward lengths, the shortest of one frame."""
    generator = torch.Generator().manual_seed(3)
    return [0.1 * torch.randn(n, generator=generator) for n in (400, 719, 1303, 4801, 16_000)]
