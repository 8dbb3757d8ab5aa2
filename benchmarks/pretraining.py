"""Measure the cost of `ssl` in a step beside other tasks, against a supervised task.

    python benchmarks/pretraining.py [--device cuda] [--size base] [--seconds 16] [--tasks asr,ks]

Steps, in turns, on the same utterances:

    without      the other tasks alone
    supervised   and phonemes of further utterances: a projection, and CTC
    ssl          and masked prediction of the same utterances, with 500 classes

A step is one pass of the encoder, forward and backward, and AdamW. The cost of a task is what it
adds to the step without it; the table has medians over the repeats.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import SIZES, append, machine, seconds_of, show_machine, table
from step import BATCHES, PRECISIONS, draw
from torch import Tensor, nn

from downstream_plugins.ssl import MaskedPrediction
from s3prl_mtl import Featurizer
from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.nn import ctc_loss, pad_features
from s3prl_mtl.training.forward import forward
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder

CLASSES = 500
PHONES = 74
PHONES_A_SECOND = 12


class MeanSquare(nn.Module):
    """Another task of the step, without a head of its own."""

    def forward(self, split: str, features: list[Tensor], *, records: Any) -> Tensor:
        return torch.cat(features).square().mean()


class Phonemes(nn.Module):
    """SUPERB's head of `pr`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projector = nn.Linear(width, 256)
        self.linear = nn.Linear(256, PHONES)

    def forward(
        self, split: str, features: list[Tensor], phones: list[Tensor], *, records: Any
    ) -> Tensor:
        padded, lengths = pad_features(features)
        return ctc_loss(self.linear(self.projector(padded)), lengths, phones)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="base", choices=sorted(SIZES))
    parser.add_argument("--scale", type=float, default=1.0, help="of the batches of other tasks")
    parser.add_argument("--tasks", default=",".join(BATCHES), help="the other tasks")
    parser.add_argument("--seconds", type=float, default=16.0, help="of audio of the task")
    parser.add_argument("--precision", default="fp32", choices=sorted(PRECISIONS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log", type=Path, help="append a JSON line to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    found = machine(device)
    show_machine(found)
    steps = Steps(arguments, device)
    costs: dict[str, list[float]] = {name: [] for name in steps.extra}
    for repeat in range(1 + arguments.repeats):
        others = steps.draw_others()
        for name in costs:
            seconds = seconds_of(partial(steps.take, name, others), device)
            if repeat:  # the first one warms up
                costs[name].append(seconds)
    added = {
        name: [cost - base for cost, base in zip(costs[name], costs["without"], strict=True)]
        for name in costs
    }
    supervised = statistics.median(added["supervised"])
    rows = [
        [
            name,
            f"{statistics.median(costs[name]):.3f}",
            f"{statistics.median(added[name]):.3f}",
            f"{statistics.median(added[name]) / supervised:.2f}",
        ]
        for name in costs
    ]
    print(table(["step", "s", "s added", "supervised = 1"], rows))
    if arguments.log:
        settings = {key: value for key, value in vars(arguments).items() if key != "log"}
        append(arguments.log, {"benchmark": "pretraining", **settings, **found, "seconds": costs})


class Steps:
    """The encoder, the tasks, and the batch of the measured task."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.arguments = arguments
        self.random = random.Random(0)
        config = SIZES[arguments.size]
        upstream = Hubert(config).to(device).train()
        featurizer = Featurizer(upstream).to(device)
        is_rounded = arguments.precision == "bf16"
        self.encoder = SharedEncoder(upstream, featurizer, device, freeze=False, bf16=is_rounded)
        width = config.encoder_embed_dim
        dictionary = [str(number) for number in range(CLASSES)]
        with tempfile.TemporaryDirectory() as folder:
            pretraining = MaskedPrediction(
                width,
                320,
                {"modelrc": {"final_dim": 256}, "lossrc": {"loss_weights": [10.0]}},
                folder,
                labels={"label_rate": 50, "dictionaries": {"km": dictionary}},
            )
        experts = {
            "ssl": pretraining.to(device),
            "supervised": Phonemes(width).to(device),
            **{name: MeanSquare() for name in arguments.tasks.split(",")},
        }
        self.tasks: Any = {
            name: SimpleNamespace(expert=expert, train_split="train")
            for name, expert in experts.items()
        }
        modules = nn.ModuleList([upstream, featurizer, *experts.values()])
        is_fused = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-5, fused=is_fused)
        count = max(1, round(arguments.seconds / 8))
        samples = int(16_000 * arguments.seconds / count)
        wavs = [0.1 * torch.randn(samples) for _ in range(count)]
        phones = [
            torch.randint(1, PHONES, (int(PHONES_A_SECOND * samples / 16_000),)) for _ in wavs
        ]
        frames = config.num_frames(samples)
        targets = [torch.randint(4, 4 + CLASSES, (1, frames)) for _ in wavs]
        self.extra = {
            "without": [],
            "supervised": [Batch("supervised", 0, wavs, [phones])],
            "ssl": [Batch("ssl", 0, wavs, [targets, list(range(count))])],
        }

    def draw_others(self) -> list[Batch]:
        """A batch of each of the other tasks, of other lengths each time."""
        names = self.arguments.tasks.split(",")
        drawn = draw(self.random, names, self.arguments.scale, vary=True)
        return [Batch(name, 0, wavs, []) for name, wavs in zip(names, drawn, strict=True)]

    def take(self, name: str, others: list[Batch]) -> None:
        """A step of the other tasks and one of `extra`."""
        self.optimizer.zero_grad(set_to_none=True)
        records: Any = defaultdict(lambda: defaultdict(list))
        batches = [*others, *self.extra[name]]
        losses = forward(batches, self.tasks, self.encoder, None, records)
        torch.stack(losses).sum().backward()
        self.optimizer.step()


if __name__ == "__main__":
    main()
