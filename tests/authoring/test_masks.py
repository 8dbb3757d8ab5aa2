"""A task of another package masks frames of its utterances: `masks` of an expert."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from s3prl_mtl import MultiTaskRunner, load
from tests.authoring.test_hidden_states import config
from tests.mistakes import user_error

EXPERT = """
import torch
from torch import nn
from torch.utils.data import DataLoader

from s3prl_mtl import Mask

SEEN = {}
EXTRA_FRAMES = 0


class Noise:
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.randn(4000 + 640 * i, generator=torch.Generator().manual_seed(i)) * 0.1, i


class DownstreamExpert(nn.Module):
    def __init__(self, upstream_dim, expdir, upstream=None, **kwargs):
        super().__init__()
        self.linear = nn.Linear(upstream_dim, 1)
        SEEN["settings"] = dict(upstream.pretraining_settings)
        self.width = upstream_dim

    def get_dataloader(self, split, epoch=0):
        collate = lambda items: ([wav for wav, _ in items], [i for _, i in items])
        return DataLoader(Noise(), 2, collate_fn=collate)

    def masks(self, split, frames, numbers):
        channels = torch.arange(self.width) < 5
        return [Mask(torch.arange(count + EXTRA_FRAMES) < 3 + i, channels if i % 2 else None)
                for i, count in zip(numbers, frames)]

    def forward(self, split, utterances, numbers, records, **kwargs):
        for number, utterance in zip(numbers, utterances):
            SEEN[split, number] = utterance
        records["n"] += numbers
        return torch.stack([self.linear(u.states).mean() + u.penalty for u in utterances]).sum()

    def predict(self, features, lengths_samples):
        return [{"frames": len(feature)} for feature in features]

    def log_records(self, split, records, logger, global_step, **kwargs):
        logger.add_scalar(f"noise/{split}-n", len(records["n"]), global_step=global_step)
"""


@pytest.fixture
def noise(install):
    install(EXPERT, None, "noise")
    import noise_plugin

    return noise_plugin


def test_masks_in_training_evaluation_and_inference(
    noise, tmp_path: Path, tiny_corpus: Path, manifest_cache: Path
) -> None:
    settings = config(["er", "noise"], tiny_corpus, manifest_cache)
    runner = MultiTaskRunner(settings, tmp_path / "run")
    assert noise.SEEN["settings"]["_name"] == "hubert"
    runner.upstream.eval()
    runner.evaluate([("noise", "test")], recorder=None)
    for number in range(4):
        seen = noise.SEEN["test", number]
        assert seen.mask.frames.sum() == 3 + number
        with torch.no_grad():
            hidden = runner.upstream([noise.Noise()[number][0]], [seen.mask])
        torch.testing.assert_close(seen.states, hidden.layer(-1)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen.penalty, hidden.penalties()[0])
    results = runner.train()
    assert results["noise"]["dev"]["n"] == 4
    used = load(tmp_path / "run", tasks=["noise"], device="cpu")
    (answer,) = used.predict([noise.Noise()[1][0]])
    assert answer["noise"] == {"frames": runner.upstream.num_frames(4640)}


def test_masked_frames_and_channels_hide_the_audio(noise) -> None:
    """Where everything is masked, the output depends on the length only."""
    from s3prl_mtl import Mask, load_upstream

    upstream = load_upstream("hubert_tiny")
    wavs = [noise.Noise()[0][0], 3 * noise.Noise()[0][0].flip(0)]
    frames = upstream.num_frames(len(wavs[0]))
    everything = torch.ones(frames, dtype=torch.bool)
    nothing = torch.zeros(frames, dtype=torch.bool)
    channels = torch.ones(upstream.hidden_size, dtype=torch.bool)
    with torch.no_grad():
        for mask in (Mask(everything), Mask(nothing, channels)):
            one, other = upstream(wavs, [mask, mask]).layer(-1)
            torch.testing.assert_close(one, other)
        unmasked = upstream(wavs).layer(-1)[1]
        beside = upstream(wavs, [Mask(everything), None]).layer(-1)[1]
        torch.testing.assert_close(beside, unmasked)


def test_masks_that_do_not_fit(
    noise, tmp_path: Path, tiny_corpus: Path, manifest_cache: Path
) -> None:
    settings = config(["noise"], tiny_corpus, manifest_cache)
    runner = MultiTaskRunner(settings, tmp_path / "run")
    noise.EXTRA_FRAMES = 1
    with user_error("expert-invalid", where="masks"):
        runner.evaluate([("noise", "test")], recorder=None)
