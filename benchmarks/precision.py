"""Compare training in bfloat16 with training in float32, by the spread of several seeds.

    python benchmarks/precision.py [--device cuda] [--data DIR] [--steps 300] [--seeds 0,1,2]

Trains nine tasks of the mini corpus with the settings of the demo, in both precisions with each
seed, all side by side. The table has the mean loss of each task over the last third of the steps,
and the first metric of its dev split after the last step: in float32 the smallest and the largest
of the seeds, in bfloat16 their median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from common import append, corpora, machine, table

Values = dict[tuple[str, str], float]
"""By task and what was measured."""


def start(
    arguments: argparse.Namespace, precision: str, seed: str, folder: Path
) -> subprocess.Popen[bytes]:
    """A training run in a process of its own."""
    steps = arguments.steps
    settings = f"config.runner.log_step={max(1, steps // 30)},,config.runner.eval_step={steps}"
    settings += ",,config.runner.test_first=false,,config.runner.test_last=false"
    words = [
        "-u",
        "hubert_tiny",
        "-d",
        arguments.tasks,
        "-c",
        "demo",
        "--data",
        str(arguments.data),
    ]
    words += ["--cache_dir", str(folder / "cache"), "-p", str(folder / f"{precision}-{seed}")]
    words += ["--steps", str(steps), "--precision", precision, "--seed", seed]
    words += ["--device", arguments.device, "-o", settings]
    log = (folder / f"{precision}-{seed}.log").open("wb")
    return subprocess.Popen([sys.executable, "-m", "s3prl_mtl", "train", *words], stderr=log)


def measured(run: Path, steps: int) -> tuple[Values, dict[str, list[float]]]:
    """The mean training losses of the last third of a run with its metrics on dev, and all of its
    training losses by task."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curves: dict[str, list[float]] = {}
    values: Values = {}
    seen = {"run", "featurizer"}
    for entry in entries:
        if entry["split"] == "train":
            if entry["metric"] == "loss" and entry["task"] != "run":
                curves.setdefault(entry["task"], []).append(entry["value"])
        elif entry["task"] not in seen:
            seen.add(entry["task"])
            values[entry["task"], f"dev {entry['metric']}"] = entry["value"]
    means = {
        (task, "training loss"): statistics.mean(losses[len(losses) * 2 // 3 :])
        for task, losses in curves.items()
    }
    return means | values, curves


def rows(single: Sequence[Values], half: Sequence[Values]) -> list[list[str]]:
    """A line for each value: of float32 the smallest and largest, the median of bfloat16, within
    them?"""
    lines = []
    for key in half[0]:
        found = [values[key] for values in single]
        low, high = min(found), max(found)
        value = statistics.median(values[key] for values in half)
        inside = "yes" if low <= value <= high else f"{max(low - value, value - high):+.3g}"
        lines.append([*key, f"{low:.4g}", f"{high:.4g}", f"{value:.4g}", inside])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", type=Path, help="the corpora (default: a new mini corpus)")
    parser.add_argument("--log", type=Path, help="append a JSON line to this file")
    arguments = parser.parse_args()
    found = machine(torch.device(arguments.device))
    print(", ".join(f"{key} {value}" for key, value in found.items() if value))
    seeds = arguments.seeds.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments.data = corpora(arguments.data, folder)
        kinds = [(precision, seed) for precision in ("fp32", "bf16") for seed in seeds]
        processes = [start(arguments, *kind, folder) for kind in kinds]
        for process, (precision, seed) in zip(processes, kinds, strict=True):
            if process.wait() != 0:
                sys.exit((folder / f"{precision}-{seed}.log").read_text())
        runs = [measured(folder / f"{p}-{s}", arguments.steps) for p, s in kinds]
    values = [found for found, _ in runs]
    single, half = values[: len(seeds)], values[len(seeds) :]
    print(table(["task", "value", "float32 from", "to", "bfloat16", "within"], rows(single, half)))
    if arguments.log:
        by_value = {" ".join(key): [one[key] for one in values] for key in values[0]}
        losses = {f"{p}-{s}": curves for (p, s), (_, curves) in zip(kinds, runs, strict=True)}
        record = {"benchmark": "precision", "steps": arguments.steps, **found}
        append(arguments.log, {**record, **by_value, "losses": losses})


if __name__ == "__main__":
    main()
