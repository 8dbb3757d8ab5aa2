"""Train, evaluate and resume every expert of s3prl with a small corpus."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.config import build_config
from s3prl_mtl.tracking.recorder import read_metrics, read_results
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.comparison import assert_same
from tests.s3prl_compat.corpora import BUILDERS, make

NEEDS_GPU = {"atis", "audio_snips", "sv_voxceleb1"}


@pytest.fixture(autouse=True)
def packages_of_which_they_use_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """librosa only lists files, h5py writes unused predictions, and sox is unused."""
    listing = ModuleType("librosa.util")
    listing.__dict__["find_files"] = lambda root: sorted(map(str, Path(root).rglob("*.wav")))
    sox = ModuleType("sox")
    sox.__dict__["Transformer"] = object
    for module in (ModuleType("librosa"), listing, sox, ModuleType("h5py")):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def gpu_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`.cuda()` stays on the CPU, to test the rest of these experts without a GPU."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor)


def run_config(
    words: list[str], corpus: Path, cache: Path, blocks: dict[str, Any] | None = None, **flags: Any
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "downstream": words,
        "data": str(corpus),
        "cache_dir": str(cache),
        "upstream.name": "hubert_tiny",
        "device": "cpu",
        "specaug": None,
        "scheduler": None,
        "optimizer.lr": 1e-3,
        "runner.total_steps": 2,
        "runner.save_step": 1,
        "runner.eval_step": 2,
        "runner.log_step": 1,
        "runner.max_keep": 5,
        "ks.downstream_expert.datarc.num_workers": 0,
    }
    for name, block in (blocks or {}).items():
        settings |= {f"{name}.{key}": value for key, value in block.items()}
    return build_config(flags=settings | flags)


def blocks_of(folder: str, word: str, scratch: Path) -> dict[str, Any]:
    """The block that states the config file of an expert of the installed s3prl."""
    if "/" in word:
        return {}
    return {word: {"config": str(scratch / f"{folder}.yaml")}}


@pytest.mark.parametrize("folder", sorted(BUILDERS))
def test_an_expert_of_s3prl_trains_beside_a_built_in_task(
    folder: str, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, request
) -> None:
    if folder in NEEDS_GPU:
        request.getfixturevalue("gpu_by_name")
    word = make(folder, tiny_corpus, tmp_path)
    name = f"s3prl:{folder}"
    config = run_config(
        [word, "ks"], tiny_corpus, manifest_cache, blocks_of(folder, word, tmp_path)
    )
    assert config["downstream"] == [name, "ks"]
    runner = MultiTaskRunner(config, tmp_path / "run")
    before = {key: value.clone() for key, value in runner.tasks[name].expert.state_dict().items()}
    runner.train()

    results = read_results(tmp_path / "run")
    splits = {*config[name]["dev_splits"], *config[name]["test_splits"]}
    assert set(results[name]) == splits
    assert all(values for values in results[name].values())
    trained = [e for e in read_metrics(tmp_path / "run") if e["task"] == name]
    assert {e["split"] for e in trained} == {*splits, "train"}
    saved = checkpoints.load(tmp_path / "run" / "states-2.ckpt").tasks[name].head
    assert saved.keys() == before.keys()
    moved = [key for key in saved if not torch.equal(saved[key], before[key])]
    assert any(key.endswith("weight") for key in moved), f"only {moved} moved"


@pytest.mark.parametrize("folder", ["fluent_commands", "ctc"])
def test_a_run_with_an_expert_of_s3prl_resumes_bit_for_bit(
    folder: str, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    word = make(folder, tiny_corpus, tmp_path)
    blocks = blocks_of(folder, word, tmp_path)
    config = run_config([word], tiny_corpus, manifest_cache, blocks, **{"runner.total_steps": 4})
    MultiTaskRunner(config, tmp_path / "run").train()
    saved = checkpoints.load(tmp_path / "run" / "states-3.ckpt")
    for file in tmp_path.rglob("*.yaml"):
        if "run" not in file.parts:
            file.unlink()  # The run has stored its settings.
    again = build_config(base=saved.config, flags={"downstream": [f"s3prl:{folder}"]})
    assert again == config
    MultiTaskRunner(again, tmp_path / "resumed", resume=saved).train()
    one = checkpoints.load(tmp_path / "run" / "states-4.ckpt")
    two = checkpoints.load(tmp_path / "resumed" / "states-4.ckpt")
    for part in ("upstream", "featurizer"):
        assert_same(getattr(one, part), getattr(two, part), part)
    heads = [run.tasks[f"s3prl:{folder}"].head for run in (one, two)]
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])
