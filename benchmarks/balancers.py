"""Measure a training step with a balancer against the sum of the losses.

    python benchmarks/balancers.py [--device cuda] [--balancers pcgrad,gradvac] [--seconds 4]

Nine tasks with linear heads on one encoder; all ways take the same utterances, in turns. A step is
forward, backward, the balancer, clipping and AdamW. Gradient-level balancers encode one task at a
time, as in training. Memory is what a step needs beyond the state before it, gradients included;
*kept* are the gradients of the tasks. On a CPU, memory is read from /proc (Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from common import SIZES, append, machine, seconds_of, show_machine, table
from step import BATCHES, Batches, draw
from torch import Tensor, nn

from s3prl_mtl import Featurizer
from s3prl_mtl.balancing import Balancer, GradientBalancer, make_balancer
from s3prl_mtl.balancing.factory import parse_balancer
from s3prl_mtl.upstreams.hubert.encoder import Hubert

DEFAULT = "sum;uncertainty;pcgrad;pcgrad:per_parameter=true;gradvac;famo"


class Trainer:
    """An encoder with a linear head for each task."""

    def __init__(self, size: str, tasks: Sequence[str], device: torch.device, bf16: bool) -> None:
        self.tasks = list(tasks)
        self.device = device
        self.bf16 = bf16
        self.model = Hubert(SIZES[size]).to(device).train()
        self.featurizer = Featurizer(self.model).to(device)
        width = self.featurizer.output_dim
        self.heads = nn.ModuleDict({task: nn.Linear(width, 32) for task in tasks}).to(device)
        self.shared = [*self.model.parameters(), *self.featurizer.parameters()]

    def losses(self, batches: Batches, tasks: Sequence[str]) -> dict[str, Tensor]:
        wavs = [wav.to(self.device) for batch in batches for wav in batch]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            hidden = self.model(wavs)
        features = iter(self.featurizer(hidden))
        return {
            task: self.heads[task](torch.cat([next(features) for _ in batch])).square().mean()
            for task, batch in zip(tasks, batches, strict=True)
        }

    def step(self, balancer: Balancer, optimizer: torch.optim.Optimizer, batches: Batches) -> None:
        heads = {task: list(head.parameters()) for task, head in self.heads.items()}
        optimizer.zero_grad(set_to_none=True)
        balancer.begin_step()
        passes = [(batches, self.tasks)]
        if balancer.one_task_at_a_time:
            passes = [([batch], [task]) for batch, task in zip(batches, self.tasks, strict=True)]
        means: dict[str, Tensor] = {}
        for part, tasks in passes:
            losses = self.losses(part, tasks)
            balancer.backward(losses, self.shared, heads)
            means |= {task: loss.detach() for task, loss in losses.items()}
        values = torch.stack(list(means.values())).tolist()
        balancer.combine(dict(zip(means, values, strict=True)), self.shared, heads)
        nn.utils.clip_grad_norm_([*self.shared, *self.heads.parameters()], 1.0)
        optimizer.step()


class PeakMemory:
    """Bytes that a block needs at its peak beyond those at its start."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what earlier steps have freed
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            self.start = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = (
            torch.cuda.max_memory_allocated(self.device)
            if self.device.type == "cuda"
            else _status("VmHWM")
        )
        self.bytes = peak - self.start


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="base", choices=sorted(SIZES))
    parser.add_argument("--scale", type=float, default=1.0, help="multiple of the branch's batches")
    parser.add_argument("--seconds", type=float, default=20.0, help="longest utterance")
    parser.add_argument("--tasks", default=",".join(BATCHES))
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--balancers", default=DEFAULT, help="separated by ;")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log", type=Path, help="append a JSON line for each row to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    tasks = arguments.tasks.split(",")
    found = machine(device)
    show_machine(found)
    generator = random.Random(0)
    longest = int(16_000 * arguments.seconds)
    draws = [
        [
            [wav[:longest] for wav in batch]
            for batch in draw(generator, tasks, arguments.scale, True)
        ]
        for _ in range(arguments.repeats + 1)
    ]
    audio = sum(len(wav) for batch in draws[0] for wav in batch) / 16_000
    print(f"{len(tasks)} tasks, {audio:.0f} s of audio in the first step")
    trainer = Trainer(arguments.size, tasks, device, arguments.precision == "bf16")
    ways = list(dict.fromkeys(["sum", *arguments.balancers.split(";")]))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, int] = dict.fromkeys(ways, 0)
    kept: dict[str, int] = dict.fromkeys(ways, 0)
    parameters = [*trainer.shared, *trainer.heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    trainer.step(make_balancer({"name": "sum"}, tasks), optimizer, draws[0])  # allocates
    for batches in draws[1:]:
        for way in ways:
            optimizer.zero_grad(set_to_none=True)
            balancer = make_balancer(parse_balancer(way, "--balancers"), tasks, device=device)
            with PeakMemory(device) as peak:
                # The first step of a balancer allocates the gradients that it keeps.
                taken = seconds_of(
                    lambda b=balancer, d=batches: trainer.step(b, optimizer, d), device
                )  # type: ignore[misc]
            print(f"{way}: {taken:.1f} s, {peak.bytes / 1e9:.2f} GB", file=sys.stderr)
            seconds[way].append(taken)
            memory[way] = max(memory[way], peak.bytes)
            if isinstance(balancer, GradientBalancer):
                kept[way] = sum(t.numel() * t.element_size() for t in balancer.partial_sums())
    rows = []
    for way in ways:
        taken = statistics.median(seconds[way])
        # Of each step, as the utterances differ between steps.
        ratio = statistics.median(
            own / base for own, base in zip(seconds[way], seconds["sum"], strict=True)
        )
        rows.append(
            [
                way,
                f"{taken:.2f}",
                f"{ratio:.2f}",
                f"{kept[way] / 1e9:.2f}",
                f"{memory[way] / 1e9:.2f}",
                f"{memory[way] / memory['sum']:.2f}",
            ]
        )
        if arguments.log:
            measured = {"balancer": way, "seconds": seconds[way], "memory": memory[way]}
            settings = {"benchmark": "balancers", "size": arguments.size, "tasks": tasks}
            append(arguments.log, {**settings, **found, **measured, "kept": kept[way]})
    head = ["balancer", "s a step", "time, sum = 1", "kept GB", "memory GB", "memory, sum = 1"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
