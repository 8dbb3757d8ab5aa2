"""Fixtures for tests of s3prl's experts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

EXPERT = """
import torch
from torch import nn
from torch.utils.data import DataLoader

from .tones import Tones


class DownstreamExpert(nn.Module):
    def __init__(self, upstream_dim, upstream_rate, downstream_expert, expdir, **kwargs):
        super().__init__()
        self.corpus = downstream_expert["corpus"]
        self.workers_seen = []
        self.linear = nn.Linear(upstream_dim, 2)

    def get_dataloader(self, split):
        if split not in ("train", "dev"):
            return None
        self.workers_seen.append(self.corpus.pop("num_workers", 12))
        return DataLoader(Tones(self.corpus["size"]), batch_size=2, collate_fn=Tones.collate)

    def forward(self, split, features, labels, names, records, **kwargs):
        logits = self.linear(torch.stack([feature.mean(dim=0) for feature in features]))
        for name, vector in zip(names, logits):
            records[name] = vector.detach().cpu()
        records["names"] += names
        return nn.functional.cross_entropy(logits, torch.tensor(labels, device=logits.device))

    def log_records(self, split, records, logger, global_step, **kwargs):
        print("measured:", split)
        logger.add_audio("tone", None, global_step=global_step, sample_rate=16000)
        seen = sum(records[name].shape == (2,) for name in records["names"])
        logger.add_scalar(f"tones/{split}-seen", seen, global_step=global_step)
"""
TONES = """
import torch


class Tones:
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        wav = torch.sin(torch.arange(4000 + 160 * i) * (i % 2 + 1) / 10)
        return wav, i % 2, f"tone-{i}"

    @staticmethod
    def collate(items):
        return tuple(zip(*items))
"""
CONFIG = """
runner:
  train_dataloader: train
  eval_dataloaders: [dev]
optimizer: {name: AdamW, lr: 1.0e-4}
downstream_expert:
  corpus: {size: 5, num_workers: 0}
"""


@pytest.fixture
def expert_folder(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Creates a folder with an expert outside s3prl."""

    def make(name: str = "tones", source: str = EXPERT, config: str | None = CONFIG) -> Path:
        folder = tmp_path / "mine" / name
        folder.mkdir(parents=True)
        (folder / "expert.py").write_text(source)
        (folder / "tones.py").write_text(TONES)
        if config is not None:
            (folder / "config.yaml").write_text(config)
        return folder

    yield make
    for name in [name for name in sys.modules if name.startswith("s3prl_experts_at_")]:
        del sys.modules[name]
