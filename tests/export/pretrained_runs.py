"""A run with a head of masked prediction, the same on every machine."""

from __future__ import annotations

from pathlib import Path

from downstream_plugins.ssl import MaskedPrediction
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint, TaskCheckpoint
from s3prl_mtl.upstreams import Featurizer, Hubert
from tests.export.tuned_runs import move, tuned

SETTINGS = {
    "modelrc": {
        "untie_final_proj": False,
        "target_glu": False,
        "final_dim": 6,
        "mask_prob": 0.5,
        "mask_length": 4,
        "logit_temp": 0.2,
    },
    "lossrc": {"pred_nomask_weight": 0.5, "loss_weights": [0.1]},
}
DICTIONARIES = {"a": ["0", "1", "2"], "b": ["4", "2", "0", "1", "3"]}


def make_expert(upstream: Hubert, folder: Path, settings: dict | None = None) -> MaskedPrediction:
    """An expert with two label sets of one label a frame."""
    return MaskedPrediction(
        upstream_dim=upstream.hidden_size,
        upstream_rate=upstream.downsample_rate,
        downstream_expert=settings or {},
        expdir=folder,
        labels={"label_rate": 16_000 / upstream.downsample_rate, "dictionaries": DICTIONARIES},
        upstream=upstream,
    )


def save_pretrained_run(folder: Path, names: tuple[str, ...] = ("ssl",)) -> Path:
    """Write the checkpoint of a run that pre-trained `odd_frozen` with another head."""
    upstream = tuned("odd_frozen")
    expert = make_expert(upstream, folder, SETTINGS)
    for parameter in expert.parameters():
        parameter.data.zero_()
    move(expert)
    config = {
        "upstream": {
            "name": "hubert",
            "ckpt": None,
            "config": None,
            "feature_selection": "hidden_states",
            "freeze": False,
        },
        **{name: {"downstream_expert": SETTINGS} for name in names},
    }
    tasks = {name: TaskCheckpoint.capture(expert) for name in names}
    saved = RunCheckpoint.capture(config, 40, {}, upstream, Featurizer(upstream), tasks)
    checkpoints.save(saved, folder / "states-40.ckpt")
    return folder
