"""Fixtures for fault injection."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.launching import Launcher
from tests.launcher import environment


@pytest.fixture(scope="session")
def variables(tiny_corpus: Path, manifest_cache: Path) -> dict[str, str]:
    """The environment of every run: the tiny corpus, one thread for each process."""
    return environment(tiny_corpus, manifest_cache, COLUMNS="160")


@pytest.fixture
def launch(variables: dict[str, str], tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path, variables)
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def uninterrupted(
    variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The folder of a run that nothing happened to; made once for all tests that ask for it."""
    made: dict[tuple[str, ...], Path] = {}

    def _uninterrupted(words: Sequence[str], ranks: int = 1) -> Path:
        key = (str(ranks), *words)
        if key not in made:
            launcher = Launcher(tmp_path_factory.mktemp("whole"), variables)
            try:
                made[key] = launcher.finished(words, ranks=ranks).folder
            finally:
                launcher.close()
        return made[key]

    return _uninterrupted


TONES = """
import os
import torch
from torch import nn
from torch.utils.data import DataLoader

RANK = int(os.environ.get("RANK", "0"))


class Tones:
    def __len__(self):
        return 24

    def __getitem__(self, i):
        item(i)
        time = torch.arange(4000 + 160 * i) / 16000
        label = i % 2
        return torch.sin(2 * torch.pi * (300 + 900 * label) * time).numpy(), label

    @staticmethod
    def collate(items):
        return [wav for wav, _ in items], [label for _, label in items]


class DownstreamExpert(nn.Module):
    def __init__(self, upstream_dim, upstream_rate, downstream_expert, expdir, **kwargs):
        super().__init__()
        self.linear = nn.Linear(upstream_dim, 2)
        self.objective = nn.CrossEntropyLoss()
        self.calls = 0

    def get_dataloader(self, split):
        return DataLoader(Tones(), batch_size=3, collate_fn=Tones.collate)

    def forward(self, split, features, labels, records, **kwargs):
        pooled = torch.stack([feature.mean(dim=0) for feature in features])
        logits = self.linear(pooled)
        labels = torch.tensor(labels)
        records["acc"] += (logits.argmax(-1) == labels).float().tolist()
        loss = self.objective(logits, labels)
        if split == "train":
            self.calls += 1
            loss = fault(loss, self.calls, len(labels))
        return loss

    def log_records(self, split, records, logger, global_step, **kwargs):
        mean = sum(records["acc"]) / len(records["acc"])
        logger.add_scalar(f"tones/{split}-acc", mean, global_step=global_step)
        return []


def fault(loss, call, utterances):
    return loss


def item(i):
    pass
"""


@pytest.fixture
def plugin(tmp_path: Path, variables: dict[str, str]) -> Callable[[str], dict[str, str]]:
    """Make a package with the task `tones` and what else `source` defines.

    Its experts call `fault(loss, call, utterances)` in every forward pass of the training, its
    dataset `item(index)` for every utterance; `source` may define both anew, and an upstream
    `limited`. What is returned are the variables with which a run finds the package.
    """

    def _plugin(source: str) -> dict[str, str]:
        module = tmp_path / "site" / "tones_task"
        metadata = tmp_path / "site" / "tones-0.1.dist-info"
        module.mkdir(parents=True)
        metadata.mkdir()
        (module / "__init__.py").write_text(f"{TONES}\n{source}")
        (module / "config.yaml").write_text("downstream_expert: {}\n")
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tones\nVersion: 0.1\n")
        entries = "[s3prl_mtl.tasks]\ntones = tones_task:DownstreamExpert\n"
        if "def limited" in source:
            entries += "[s3prl_mtl.upstreams]\nlimited = tones_task:limited\n"
        (metadata / "entry_points.txt").write_text(entries)
        known = variables.get("PYTHONPATH")
        folders = [str(tmp_path / "site"), *([known] if known else [])]
        return {"PYTHONPATH": os.pathsep.join(folders)}

    return _plugin
