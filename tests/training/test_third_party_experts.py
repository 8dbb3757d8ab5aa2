"""Third-party experts: s3prl's contract, a plain loader, a separate package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.config import build_config
from s3prl_mtl.tracking.recorder import read_results
from s3prl_mtl.tracking.results_table import results_table
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.mistakes import user_error

# As people write them for s3prl: a loader that shuffles by itself, files beside the checkpoints,
# whatever the runner passes taken as keyword arguments, metrics by tensorboard's name.
EXPERT = """
import os
import torch
from torch import nn
from torch.utils.data import DataLoader


class Tones:
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        time = torch.arange(4000 + 160 * i) / 16000
        label = i % 2
        return torch.sin(2 * torch.pi * (300 + 900 * label) * time).numpy(), label

    @staticmethod
    def collate(items):
        return [wav for wav, _ in items], [label for _, label in items]


class DownstreamExpert(nn.Module):
    def __init__(self, upstream_dim, upstream_rate, downstream_expert, expdir, **kwargs):
        super().__init__()
        self.expdir = expdir
        self.batch = downstream_expert["datarc"]["batch"]
        self.linear = nn.Linear(upstream_dim, 2)
        self.objective = nn.CrossEntropyLoss()
        self.register_buffer("best", torch.zeros(1))

    def get_dataloader(self, split, epoch=0):
        return DataLoader(
            Tones(7), batch_size=self.batch, shuffle=split == "train", collate_fn=Tones.collate
        )

    def forward(self, split, features, labels, records, **kwargs):
        if split != "train":
            assert "batch_id" in kwargs
        pooled = torch.stack([feature.mean(dim=0) for feature in features])
        logits = self.linear(pooled)
        labels = torch.tensor(labels, device=logits.device)
        records["acc"] += (logits.argmax(-1) == labels).float().tolist()
        return self.objective(logits, labels)

    def log_records(
        self, split, records, logger, global_step, batch_ids, total_batch_num, **kwargs
    ):
        assert batch_ids and all(0 <= i < total_batch_num for i in batch_ids)
        mean = sum(records["acc"]) / len(records["acc"])
        logger.add_scalar(f"tones/{split}-acc", mean, global_step=global_step)
        with open(os.path.join(self.expdir, f"{split}-hyp.txt"), "a") as file:
            file.write(f"{mean}\\n")
        if split == "dev" and mean > self.best:
            self.best = torch.ones(1) * mean
            return ["dev-best.ckpt"]
        return []
""".replace("\\\\n", "\\n")
DEFAULTS = "downstream_expert: {datarc: {batch: 3, rate: 1e-3}}\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a package with a task `tones` of this source."""

    def _install(source: str) -> None:
        module = tmp_path / "site" / "tones_task"
        metadata = tmp_path / "site" / "tones-0.1.dist-info"
        module.mkdir(parents=True)
        metadata.mkdir()
        (module / "__init__.py").write_text(source)
        (module / "config.yaml").write_text(DEFAULTS)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tones\nVersion: 0.1\n")
        (metadata / "entry_points.txt").write_text(
            "[s3prl_mtl.tasks]\ntones = tones_task:DownstreamExpert\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    yield _install
    sys.modules.pop("tones_task", None)


def tones_config(**flags) -> dict:
    settings = {
        "downstream": ["tones"],
        "upstream.name": "hubert_tiny",
        "device": "cpu",
        "specaug": None,
        "scheduler": None,
        "optimizer.lr": 1e-3,
        "runner.total_steps": 6,
        "runner.save_step": 3,
        "runner.log_step": 2,
        "runner.eval_step": 3,
        "runner.max_keep": 5,
    }
    return build_config(flags=settings | flags)


def test_an_s3prl_expert_trains_unchanged(install, tmp_path: Path):
    install(EXPERT)
    config = tones_config()
    assert config["tones"]["downstream_expert"]["datarc"]["rate"] == pytest.approx(1e-3)
    run = tmp_path / "run"
    MultiTaskRunner(config, run).train()
    assert set(read_results(run)["tones"]) == {"dev", "test"}
    assert (run / "tones" / "dev-best.ckpt").is_file()
    assert (run / "tones" / "test-hyp.txt").read_text().count("\n") == 1
    # Two shuffled epochs of three batches: what it has seen is not lost on resuming.
    saved = checkpoints.load(run / "states-3.ckpt")
    resumed = MultiTaskRunner(config, tmp_path / "resumed", resume=saved)
    resumed.train()
    one = checkpoints.load(run / "states-6.ckpt").tasks["tones"].head
    two = checkpoints.load(tmp_path / "resumed" / "states-6.ckpt").tasks["tones"].head
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)


def test_results_of_an_uninstalled_expert_are_shown(
    install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    install(EXPERT)
    MultiTaskRunner(tones_config(), tmp_path / "run").train()
    table = results_table(tmp_path / "run")
    assert table.row_count == 1
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path / "site")])
    assert results_table(tmp_path / "run").row_count == 1


def test_a_failing_evaluation_does_not_lose_trained_steps(install, tmp_path: Path):
    line = "    def get_dataloader(self, split, epoch=0):"
    failing = line + "\n        if split == 'dev':\n            raise RuntimeError('no dev set')"
    install(EXPERT.replace(line, failing))
    with pytest.raises(RuntimeError, match="no dev set"):
        MultiTaskRunner(tones_config(**{"runner.save_step": 100}), tmp_path / "run").train()
    assert checkpoints.load(tmp_path / "run" / "states-3.ckpt").step == 3


def test_an_evaluation_that_failed_is_repeated_on_resuming(install, tmp_path: Path):
    line = "    def get_dataloader(self, split, epoch=0):"
    flag = str(tmp_path / "repaired")
    failing = f"        if split == 'dev' and not os.path.exists({flag!r}):\n            1 / 0"
    install(EXPERT.replace(line, f"{line}\n{failing}"))
    config = tones_config(**{"runner.total_steps": 3})
    with pytest.raises(ZeroDivisionError):
        MultiTaskRunner(config, tmp_path / "run").train()
    (tmp_path / "repaired").touch()
    saved = checkpoints.load(tmp_path / "run" / "states-3.ckpt")
    MultiTaskRunner(config, tmp_path / "run", resume=saved).train()
    assert "dev" in read_results(tmp_path / "run")["tones"]
    assert (tmp_path / "run" / "tones" / "dev-best.ckpt").is_file()


def test_an_expert_that_cannot_be_built_is_named_with_its_package(install, tmp_path: Path):
    install(EXPERT.replace("self.expdir = expdir", "1 / 0"))
    with user_error("expert-failed", where=r"tones 0\.1") as caught:
        MultiTaskRunner(tones_config(), tmp_path / "run")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_labels_that_a_checkpoint_could_not_restore_are_refused_before_training(
    install, tmp_path: Path
):
    line = "        self.expdir = expdir"
    source = EXPERT.replace(line, line + "\n        self.labels = {'a': {1}}")
    install(source)
    with user_error("expert-invalid") as caught:
        MultiTaskRunner(tones_config(), tmp_path / "run")
    assert "`labels`" in str(caught.value)
