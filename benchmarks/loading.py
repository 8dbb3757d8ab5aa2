"""Measure what surrounds the encoder in a training step: loading, heads, losses, the optimizer.

    python benchmarks/loading.py [--device cuda] [--data DIR] [--size base] [--scale 4]

Trains nine tasks on the mini corpus (made in a temporary folder without `--data`) by a
`MultiTaskRunner`, and takes the encoder's part of each of these steps again, on the same
utterances: forward, backward, its own optimizer. Waiting is the time in which the loop asks for its
next batches. On a CPU the loader's processes share the cores with the training. Under torchrun all
processes take steps together, and the audio of all counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common import SIZES, append, corpora, machine, run_config, show_machine, synchronise, table
from step import BATCHES

from s3prl_mtl.data import SAMPLE_RATE
from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.distributed.world import World
from s3prl_mtl.training.runner import MultiTaskRunner

WARM_UP = 5


def make_runner(
    arguments: argparse.Namespace, world: World, data: Path, folder: Path
) -> MultiTaskRunner:
    """A run of the tasks with an encoder of random weights."""
    tasks = arguments.tasks.split(",")
    overrides = []
    for task in tasks:
        datarc = f"config.{task}.downstream_expert.datarc"
        size = max(1, round(BATCHES[task][0] * arguments.scale))
        overrides.append(f"{datarc}.train_batch_size={size}")
    if arguments.num_workers is not None:
        overrides.append(f"runner.num_workers={arguments.num_workers}")
    # The first process writes the encoder.
    config = world.broadcast(
        run_config(arguments, tasks, data, folder, ",,".join(overrides)) if world.is_lead else {}
    )
    return MultiTaskRunner(config, folder / "run", world=world)


class Measured:
    """The steps of a run, with the seconds of their parts."""

    def __init__(self, runner: MultiTaskRunner) -> None:
        self.runner = runner
        self.waits: list[float] = []
        self.batches: list[Sequence[Batch]] = []
        loaders = runner.training_step.loaders
        self._draw = loaders.draw
        loaders.draw = self._timed_draw  # type: ignore[method-assign]
        self.optimizer = torch.optim.AdamW(
            [*runner.upstream.parameters(), *runner.featurizer.parameters()],
            lr=0.0,
            fused=runner.device.type == "cuda",
        )

    def _timed_draw(self) -> list[Batch]:
        start = time.perf_counter()
        drawn = self._draw()
        self.waits.append(time.perf_counter() - start)
        self.batches.append(drawn)
        return drawn

    def steps(self, count: int) -> float:
        """Seconds of some training steps, without a pause between them."""
        synchronise(self.runner.device)
        start = time.perf_counter()
        for _ in range(count):
            self.runner.train_step()
        synchronise(self.runner.device)
        return time.perf_counter() - start

    def encoder_steps(self, draws: Sequence[Sequence[Batch]]) -> float:
        """Seconds of the encoder's part of steps on these batches, without other processes."""
        encoder = self.runner.encoder
        encoder.set_training(True)
        synchronise(self.runner.device)
        start = time.perf_counter()
        for draw in draws:
            self.optimizer.zero_grad(set_to_none=True)
            features = encoder.features([wav for batch in draw for wav in batch.wavs])
            torch.cat(features).square().mean().backward()
            self.optimizer.step()
        synchronise(self.runner.device)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="base", choices=sorted(SIZES))
    parser.add_argument("--scale", type=float, default=4.0, help="multiple of the branch's batches")
    parser.add_argument("--tasks", default=",".join(BATCHES))
    parser.add_argument("--precision", default="bf16", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--data", type=Path, help="the corpora (default: a new mini corpus)")
    parser.add_argument("--num_workers", type=int, help="loader workers of each process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of each repeat")
    # Short as well: torchrun takes the other one for an abbreviation of its own.
    parser.add_argument("-l", "--log", type=Path, help="append a JSON line to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with World.join() as world, tempfile.TemporaryDirectory() as name:
        folder = Path(world.broadcast(name))
        data = world.broadcast(corpora(arguments.data, folder) if world.is_lead else folder)
        measured = Measured(make_runner(arguments, world, data, folder))
        measured.steps(WARM_UP)
        measured.encoder_steps(measured.batches)
        whole, alone, waiting = [], [], []
        count = arguments.steps
        for _ in range(arguments.repeats):
            whole.append(measured.steps(count) / count)
            waiting.append(sum(measured.waits[-count:]) / count)
            alone.append(measured.encoder_steps(measured.batches[-count:]) / count)
        drawn = measured.batches[WARM_UP:]
        samples = sum(batch.samples for draw in drawn for batch in draw)
        audio = sum(world.all_gather(samples)) / SAMPLE_RATE / len(drawn)
        if world.is_lead:
            show(arguments, world.size, audio, whole, alone, waiting)


def show(
    arguments: argparse.Namespace,
    processes: int,
    audio: float,
    whole: Sequence[float],
    alone: Sequence[float],
    waiting: Sequence[float],
) -> None:
    """Print and log the seconds of steps, of their encoder, and of waiting for data."""
    found = machine(torch.device(arguments.device))
    show_machine(found)
    ratio = statistics.median(a / b for a, b in zip(whole, alone, strict=True))
    share = statistics.median(a / b for a, b in zip(waiting, whole, strict=True))
    row = [str(processes), f"{audio:.0f}", f"{1e3 * statistics.median(whole):.0f}"]
    row += [f"{1e3 * statistics.median(alone):.0f}", f"{ratio:.2f}", f"{share:.1%}"]
    head = [
        "processes",
        "s of audio",
        "ms a step",
        "ms, encoder alone",
        "step, encoder = 1",
        "waiting",
    ]
    print(table(head, [row]))
    if arguments.log:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("log", "data")}
        measured = {"step": whole, "encoder": alone, "waiting": waiting, "audio": audio}
        settings |= {"benchmark": "loading", "processes": processes}
        append(arguments.log, {**settings, **found, **measured})


if __name__ == "__main__":
    main()
