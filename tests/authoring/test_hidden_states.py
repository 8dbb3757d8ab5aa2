"""An expert with `wants_hidden_states` gets the hidden states of each layer."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from s3prl_mtl import MultiTaskRunner, load, load_upstream
from s3prl_mtl.config import build_config
from s3prl_mtl.training.forward import forward

# The expert stores its inputs in a global of its module.
EXPERT = """
import torch
from torch import nn
from torch.utils.data import DataLoader

SEEN = {}


class Noise:
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.randn(4000 + 640 * i, generator=torch.Generator().manual_seed(i)) * 0.1, i


class DownstreamExpert(nn.Module):
    wants_hidden_states = True

    def __init__(self, upstream_dim, upstream_rate, downstream_expert, expdir, **kwargs):
        super().__init__()
        self.linear = nn.Linear(upstream_dim, 1)

    def get_dataloader(self, split, epoch=0):
        collate = lambda items: ([wav for wav, _ in items], [i for _, i in items])
        return DataLoader(Noise(), 2, collate_fn=collate)

    def forward(self, split, states, numbers, records, **kwargs):
        for number, state in zip(numbers, states):
            SEEN[split, number] = state.detach().clone()
        records["n"] += numbers
        return torch.stack([self.linear(state[1]).mean() for state in states]).sum()

    def predict(self, states, lengths_samples):
        return [{"layers": len(state)} for state in states]

    def log_records(self, split, records, logger, global_step, **kwargs):
        logger.add_scalar(f"noise/{split}-n", len(records["n"]), global_step=global_step)
"""


def config(tasks: list[str], tiny_corpus: Path, manifest_cache: Path, **more) -> dict:
    flags = {
        "downstream": tasks,
        "upstream.name": "hubert_tiny",
        "device": "cpu",
        "data": str(tiny_corpus),
        "cache_dir": str(manifest_cache),
        "runner.total_steps": 1,
        "scheduler": None,
    }
    return build_config(flags=flags | more, overrides="er.downstream_expert.datarc.num_workers=0")


@pytest.fixture
def noise(install):
    install(EXPERT, None, "noise")
    import noise_plugin

    return noise_plugin


def test_hidden_states_in_training_evaluation_and_inference(
    noise, tmp_path: Path, tiny_corpus: Path, manifest_cache: Path
):
    settings = config(["er", "noise"], tiny_corpus, manifest_cache)
    runner = MultiTaskRunner(settings, tmp_path / "run")
    runner.upstream.eval()
    before = load_upstream("hubert_tiny").eval()
    waveforms = [noise.Noise()[i][0] for i in range(4)]
    with torch.no_grad():
        wanted = before(waveforms).split()
    runner.evaluate([("noise", "test")], recorder=None)
    for number, states in enumerate(wanted):
        torch.testing.assert_close(noise.SEEN["test", number], states, rtol=1e-4, atol=1e-5)
    results = runner.train()
    assert results["noise"]["dev"]["n"] == 4
    trained = [states for (split, _), states in noise.SEEN.items() if split == "train"]
    assert trained and all(states.shape[0] == before.num_hidden_states for states in trained)
    used = load(tmp_path / "run", tasks=["noise", "er"], device="cpu")
    (answer,) = used.predict([waveforms[0]])
    assert answer["noise"] == {"layers": before.num_hidden_states}
    assert set(answer["er"]) == {"class", "probability"}


def test_the_gradient_of_hidden_states_reaches_the_encoder(
    noise, tmp_path: Path, tiny_corpus: Path, manifest_cache: Path
):
    settings = config(["noise"], tiny_corpus, manifest_cache, **{"runner.test_last": False})
    runner = MultiTaskRunner(settings, tmp_path / "run")
    runner.training_step.run.set_training(True)
    microbatch = runner.training_step.loaders.draw()
    (loss,) = forward(microbatch, runner.tasks, runner.encoder, None, {"noise": defaultdict(list)})
    loss.backward()
    reached = {
        name
        for name, parameter in runner.upstream.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    # The loss depends on the output of the first layer only.
    assert any(name.startswith("encoder.layers.0.") for name in reached)
    assert not any(name.startswith("encoder.layers.1.") for name in reached)
