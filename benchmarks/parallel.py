"""Measure data against task parallel: nine tasks with their real heads on a few processes.

    python benchmarks/parallel.py [--processes 2,4] [--rounds 3] [--quick] [--json FILE]

It starts the processes itself (torchrun, gloo, one thread each), a round of `--parallel data` and
one of `--parallel task` in turns, so that a busy moment hits both alike. Both take the same
utterances. Every step is taken twice, on the same batches: once with and once without overlap of
communication and backward pass, in turns the one and the other first. Without `--data` the mini
corpus is synthesised. Linux only: memory is read from /proc.

- *memory* is the proportional set size (what is shared counts in parts) of a rank and its loader
  workers, between two steps. *peak* is the largest resident set of the rank alone.
- *sent* are the bytes that a rank passes on for sums of gradients: 2 (g - 1) / g times their size
  among g ranks, as a ring does it.
- *computes* is processor time of the rank's main thread, which other programs do not change;
  *waits* the time that this thread stands in calls to the others, for them or for the network.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import corpora
from rich.console import Console
from rich.table import Table

from s3prl_mtl.config import build_config, parse_tasks
from s3prl_mtl.distributed.world import Group, World
from s3prl_mtl.training.runner import MultiTaskRunner

WAYS = ("data", "task")
WARM_UP_STEPS = 2
SURROUNDINGS = {
    # More threads than cores would measure the scheduler.
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass
class Step:
    """What one step took on one rank.

    Args:
        overlaps: sums of gradients leave during the backward pass.
        seconds: by the clock.
        computes: seconds of processor time of the main thread outside of calls to other ranks.
        waits: seconds by the clock in such calls.
        transfers: seconds of processor time of all other threads: sending, receiving, adding.
        sent: bytes of gradients.
    """

    overlaps: bool
    seconds: float
    computes: float
    waits: float
    transfers: float
    sent: float


@dataclass
class RankFigures:
    """What was measured on one rank."""

    experts: list[str]
    shares: dict[str, int]
    loaders: int
    memory: int
    peak: int
    steps: list[Step] = field(default_factory=list)

    def figures(self, name: str, overlaps: bool = True) -> list[float]:
        return [getattr(step, name) for step in self.steps if step.overlaps is overlaps]

    def mean(self, name: str) -> float:
        return statistics.mean(self.figures(name))

    def waiting(self, overlaps: bool = True) -> float:
        """The part of the time that this rank waits."""
        return sum(self.figures("waits", overlaps)) / sum(self.figures("seconds", overlaps))


@dataclass
class Round:
    """One start of all ranks in one of the ways."""

    way: str
    costs: dict[str, float]
    ranks: list[RankFigures]

    def seconds(self, overlaps: bool = True) -> float:
        """The median over ranks and steps."""
        return middle(s for rank in self.ranks for s in rank.figures("seconds", overlaps))

    def imbalance(self) -> float:
        """What the busiest rank computes in a step over the mean of the ranks; median of steps.

        In data parallel another rank may be the busiest in every step: the one with long batches.
        """
        by_step = zip(*(rank.figures("computes") for rank in self.ranks), strict=True)
        return middle(max(busy) / statistics.mean(busy) for busy in by_step)

    def busiest(self) -> float:
        """What the rank computes that computes most in a step: a step cannot be shorter."""
        by_step = zip(*(rank.figures("computes") for rank in self.ranks), strict=True)
        return middle(max(busy) for busy in by_step)

    def waiting(self, overlaps: bool = True) -> float:
        """The part of the time that a rank waits, mean over ranks."""
        return statistics.mean(rank.waiting(overlaps) for rank in self.ranks)

    def without_overlap(self) -> float:
        """Seconds of a step without overlap over those of the same step with it; the median."""
        return middle(
            late / early
            for rank in self.ranks
            for early, late in zip(
                rank.figures("seconds"), rank.figures("seconds", overlaps=False), strict=True
            )
        )

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Round:
        ranks = [
            RankFigures(**{**rank, "steps": [Step(**step) for step in rank["steps"]]})
            for rank in plain["ranks"]
        ]
        return cls(plain["way"], plain["costs"], ranks)


# ------------------------------------------------------------------------------- on a rank


class Ear:
    """Listens to what a rank says to the others: how long that takes, what it sends."""

    def __init__(self) -> None:
        self.waits = 0.0
        self.own_processor_time = 0.0
        self.sent = 0.0

    def attach(self) -> None:
        """Wrap every operation of every group in this process."""
        for name in ("sum", "gather", "all_gather", "broadcast"):
            setattr(Group, name, self._timed(getattr(Group, name)))
        start_sum = self._timed(Group.start_sum)

        def counted(group: Group, values: torch.Tensor) -> Callable[[], None]:
            self.sent += 2 * (group.size - 1) / group.size * values.nbytes
            wait: Callable[[], None] = self._timed(start_sum(group, values))
            return wait

        setattr(Group, "start_sum", counted)  # noqa: B010  (mypy minds a plain assignment)

    def _timed(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begun, busy = time.perf_counter(), time.thread_time()
            try:
                return operation(*arguments)
            finally:
                self.waits += time.perf_counter() - begun
                self.own_processor_time += time.thread_time() - busy

        return run


def be_rank(settings: dict[str, Any], answer: Path) -> None:
    """One of the processes: train, and let the first one write what all have measured."""
    torch.set_num_threads(1)
    ear = Ear()
    with World.join("gloo", settings["timeout"]) as world:
        config = build_config(flags=settings["flags"], overrides=settings["overrides"])
        runner = MultiTaskRunner(config, settings["folder"], world=world)
        shares = {name: len(task.stream.shares) for name, task in runner.tasks.items()}
        figures = RankFigures(list(runner.tasks), shares, loaders=0, memory=0, peak=0)
        ear.attach()
        for _ in range(WARM_UP_STEPS):
            runner.train_step()
        for number in range(settings["steps"]):
            figures.steps += measured_steps(runner, ear, [number % 2 == 0, number % 2 == 1])
            # Nobody's memory is read while another rank computes, or is gone.
            world.all_gather(None)
            loaders = loader_workers()
            figures.loaders = max(figures.loaders, len(loaders))
            memory = sum(map(proportional_bytes, [os.getpid(), *loaders]))
            figures.memory = max(figures.memory, memory)
            world.all_gather(None)
        figures.peak = kilobytes(Path("/proc/self/status"), "VmHWM") * 1024
        gathered = world.gather(asdict(figures))
        if gathered is not None:
            plain = {"way": settings["way"], "costs": runner._costs, "ranks": gathered}
            answer.write_text(json.dumps(plain), encoding="utf-8")


def measured_steps(runner: MultiTaskRunner, ear: Ear, ways: Sequence[bool]) -> list[Step]:
    """One step on the same batches for each entry of `ways`: whether it overlaps."""
    begun, thread = time.perf_counter(), time.thread_time()
    pieces = type(runner.training_step).draw(runner.training_step)
    reading, reads = time.perf_counter() - begun, time.thread_time() - thread
    runner.training_step.__dict__["draw"] = lambda: pieces
    steps = [measured_step(runner, ear, overlaps) for overlaps in ways]
    for step in steps:
        step.seconds += reading
        step.computes += reads
    return steps


def measured_step(runner: MultiTaskRunner, ear: Ear, overlaps: bool) -> Step:
    gradients = runner.training_step.gradients
    if overlaps:
        gradients.__dict__.pop("overlapping", None)
    else:
        # `finish` then sends all of them, after the backward pass.
        gradients.__dict__["overlapping"] = nullcontext
    ear.waits = ear.own_processor_time = ear.sent = 0.0
    begun, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
    runner.train_step()
    seconds = time.perf_counter() - begun
    busy = time.thread_time() - thread
    transfers = time.process_time() - process - busy
    computes = busy - ear.own_processor_time
    return Step(overlaps, seconds, computes, ear.waits, transfers, ear.sent)


def loader_workers() -> list[int]:
    """The live child processes of this one: its loaders' workers."""
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def proportional_bytes(pid: int) -> int:
    """The proportional set size of a process; 0 if it has just ended."""
    try:
        return kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss") * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0


def kilobytes(file: Path, key: str) -> int:
    lines = file.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


# ------------------------------------------------------------------------- around the ranks


def play_round(size: int, way: str, arguments: argparse.Namespace, folder: Path) -> Round:
    """Start `size` processes that train in one of the ways, and wait for what they measure."""
    tasks = parse_tasks(arguments.tasks)
    with tempfile.TemporaryDirectory(dir=folder) as run:
        settings = {
            "way": way,
            "folder": run,
            "steps": arguments.steps,
            "timeout": arguments.timeout,
            "flags": {
                "upstream.name": arguments.upstream,
                "downstream": tasks,
                "data": str(arguments.data),
                "cache_dir": str(arguments.cache_dir),
                "device": "cpu",
                "distributed.parallel": way,
                "distributed.placement": arguments.placement if way == "task" else None,
            },
            "overrides": f"runner.num_workers={arguments.num_workers}",
        }
        answer = Path(run) / "answer.json"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        subprocess.run(
            [*torchrun, f"--nproc_per_node={size}", __file__, json.dumps(settings), str(answer)],
            env=os.environ | SURROUNDINGS,
            check=True,
        )
        return Round.from_plain(json.loads(answer.read_text(encoding="utf-8")))


def middle(values: Iterable[float]) -> float:
    return statistics.median(values)


def show_ranks(console: Console, size: int, typical: dict[str, Round]) -> None:
    """What each rank has and does, of the round that is typical of each way."""
    table = Table(title=f"{size} processes, each rank", title_justify="left")
    for heading in ("parallel", "rank", "experts (shares)"):
        table.add_column(heading)
    figures = ("loaders", "memory", "peak", "sent a step", "computes", "waits", "of the step")
    for heading in figures:
        table.add_column(heading, justify="right")
    for way, chosen in typical.items():
        for number, rank in enumerate(chosen.ranks):
            listed = " ".join(f"{name}:{count}" for name, count in rank.shares.items())
            if all(count == 1 for count in rank.shares.values()) and way == "data":
                listed = f"all {len(rank.shares)}, a share of each"
            table.add_row(
                way,
                str(number),
                listed,
                str(rank.loaders),
                gigabytes(rank.memory),
                gigabytes(rank.peak),
                f"{rank.mean('sent') / 1e6:.0f} MB",
                f"{rank.mean('computes'):.2f} s",
                f"{rank.mean('waits'):.2f} s",
                f"{rank.waiting():.0%}",
            )
        table.add_section()
    console.print(table)


def show_ways(console: Console, size: int, rounds: dict[str, list[Round]]) -> None:
    """Data against task parallel: medians over the rounds, and their ratio."""
    table = Table(title=f"{size} processes, both ways", title_justify="left")
    table.add_column("")
    for heading in ("data", "task", "data / task"):
        table.add_column(heading, justify="right")
    rows: dict[str, tuple[Callable[[Round], float], str]] = {
        "experts built, all ranks": (lambda r: sum(len(k.experts) for k in r.ranks), "{:.0f}"),
        "loader processes, all ranks": (lambda r: sum(k.loaders for k in r.ranks), "{:.0f}"),
        "memory, largest rank (GB)": (lambda r: max(k.memory for k in r.ranks) / 1e9, "{:.2f}"),
        "memory, all ranks (GB)": (lambda r: sum(k.memory for k in r.ranks) / 1e9, "{:.2f}"),
        "gradients sent, all ranks (MB a step)": (
            lambda r: sum(k.mean("sent") for k in r.ranks) / 1e6,
            "{:.0f}",
        ),
        "step (s)": (Round.seconds, "{:.2f}"),
        "computes, busiest rank of a step (s)": (Round.busiest, "{:.2f}"),
        "computes, all ranks (s)": (lambda r: sum(k.mean("computes") for k in r.ranks), "{:.2f}"),
        "sending and adding, all ranks (s of processor)": (
            lambda r: sum(k.mean("transfers") for k in r.ranks),
            "{:.2f}",
        ),
        "busiest rank / mean": (Round.imbalance, "{:.2f}"),
        "waits, part of the step, mean of the ranks": (Round.waiting, "{:.2f}"),
        "waits, without overlap": (lambda r: r.waiting(overlaps=False), "{:.2f}"),
        "step without overlap / with": (Round.without_overlap, "{:.2f}"),
    }
    for title, (figure, form) in rows.items():
        data, task = (middle(figure(one) for one in rounds[way]) for way in WAYS)
        ratio = f"{data / task:.2f}" if task else ""
        table.add_row(title, form.format(data), form.format(task), ratio)
    console.print(table)
    for way in WAYS:
        listed = ", ".join(f"{one.seconds():.2f}" for one in rounds[way])
        console.print(f"{way}: median step of each round, s: {listed}", highlight=False)


def typical_of(rounds: Sequence[Round]) -> Round:
    """The one with the median step time (the faster one of two)."""
    return sorted(rounds, key=Round.seconds)[(len(rounds) - 1) // 2]


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    rounds: dict[int, dict[str, list[Round]]] = {
        size: {way: [] for way in WAYS} for size in arguments.processes
    }
    for number in range(arguments.rounds):
        for size, by_way in rounds.items():
            # Who is first changes, for what the first one warms up.
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                by_way[way].append(play_round(size, way, arguments, folder))
                seconds = by_way[way][-1].seconds()
                console.print(f"{size} processes, {way}: {seconds:.2f} s a step", highlight=False)
                if arguments.json:
                    plain = {
                        str(one): {way: [asdict(each) for each in played[way]] for way in WAYS}
                        for one, played in rounds.items()
                    }
                    text = json.dumps(plain, indent=1) + "\n"
                    arguments.json.write_text(text, encoding="utf-8")
    for size, by_way in rounds.items():
        show_ranks(console, size, {way: typical_of(by_way[way]) for way in WAYS})
        show_ways(console, size, by_way)


def main() -> None:
    if "RANK" in os.environ:
        be_rank(json.loads(sys.argv[1]), Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--processes", type=_numbers, default=[2, 4], help="2,4")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each way")
    parser.add_argument("--steps", type=int, default=8, help="measured in a round")
    parser.add_argument("--quick", action="store_true", help="one round of few steps")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--placement", help="by hand instead of by measured cost, of one size")
    parser.add_argument("--upstream", default="hubert_tiny")
    parser.add_argument("--num-workers", type=int, default=2, help="loader workers of each task")
    parser.add_argument("--data", type=Path, help="folder of the corpora")
    parser.add_argument("--cache_dir", type=Path, help="scanned corpora")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a rank waits")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was measured")
    arguments = parser.parse_args()
    if arguments.placement and len(arguments.processes) != 1:
        parser.error("a placement is for one number of processes: name it with --processes")
    if arguments.quick:
        arguments.rounds, arguments.steps = 1, 2
    with tempfile.TemporaryDirectory() as folder:
        arguments.data = corpora(arguments.data, Path(folder))
        if arguments.cache_dir is None:
            arguments.cache_dir = Path(folder) / "cache"
        measure(arguments, Path(folder))


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
