"""Short trainings of several variants with several seeds: losses and metrics of each run."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Found:
    """What a run measured.

    Args:
        values: by task and name; the mean training loss of the last third of the steps, and the
            first metric of the first dev split after the last step.
        losses: training losses of each task, one for each log line.
    """

    values: dict[tuple[str, str], float]
    losses: dict[str, list[float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, help="runs at the same time (default: all)")
    parser.add_argument("--data", type=Path, help="the corpora (default: a new mini corpus)")
    parser.add_argument("--log", type=Path, help="append a JSON line to this file")
    parser.add_argument(
        "--folder",
        type=Path,
        help="of the runs: the same command goes on after an interruption (default: a new one)",
    )


@contextmanager
def folder_of_runs(given: Path | None) -> Iterator[Path]:
    """The given folder, or a new one that is removed at the end."""
    if given is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    given.mkdir(parents=True, exist_ok=True)
    yield given


def short_runs(
    arguments: argparse.Namespace, variants: Mapping[str, Sequence[str]], folder: Path
) -> dict[str, list[Found]]:
    """Train every variant with every seed, with the settings of the demo.

    Args:
        arguments: of :func:`add_arguments`.
        variants: further words of the command line, by name.
        folder: of the runs.

    Returns:
        for each variant, what was measured with each seed.
    """
    runs = {
        (name, seed): [*words, "--seed", seed]
        for name, words in variants.items()
        for seed in arguments.seeds.split(",")
    }
    # A thread waits for the process of each run.
    with ThreadPoolExecutor(arguments.jobs or len(runs)) as pool:
        found = pool.map(
            lambda run: _train(arguments, runs[run], folder / f"{run[0]}-{run[1]}"), runs
        )
        results: dict[str, list[Found]] = {}
        for (name, _), one in zip(runs, found, strict=True):
            results.setdefault(name, []).append(one)
    return results


def _train(arguments: argparse.Namespace, words: Sequence[str], run: Path) -> Found:
    steps = arguments.steps
    settings = f"config.runner.log_step={max(1, steps // 30)},,config.runner.eval_step={steps}"
    settings += ",,config.runner.test_first=false,,config.runner.test_last=false"
    command = [sys.executable, "-m", "s3prl_mtl", "train", "-u", "hubert_tiny", "-c", "demo"]
    command += ["-d", arguments.tasks, "--data", str(arguments.data), "-p", str(run)]
    command += ["--cache_dir", str(run.parent / "cache"), "--device", arguments.device]
    command += ["--steps", str(steps), "-o", settings, *words]
    if not (run / "finished.json").is_file():
        done = subprocess.run([*command, "-a"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
    values: dict[tuple[str, str], float] = {}
    losses: dict[str, list[float]] = {}
    seen = {"run", "featurizer"}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["split"] == "train":
            if entry["metric"] == "loss" and entry["task"] != "run":
                losses.setdefault(entry["task"], []).append(entry["value"])
        elif entry["task"] not in seen:
            seen.add(entry["task"])
            values[entry["task"], f"dev {entry['metric']}"] = entry["value"]
    means = {
        (task, "training loss"): statistics.mean(of_task[len(of_task) * 2 // 3 :])
        for task, of_task in losses.items()
    }
    return Found(means | values, losses)
