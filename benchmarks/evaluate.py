"""Measure an evaluation: splits with the same audio, together and alone, and the size of batches.

    python benchmarks/evaluate.py [--device cuda] [--data DIR] [--seconds 10,50,200]

Evaluates the dev splits of `asr` and `pr` on the mini corpus, which have the same utterances, with
an encoder of random weights: both at once, so that they are encoded once, and one after the other.
The rate is seconds of audio of both tasks a second, the median.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import SIZES, append, corpora, machine, run_config, show_machine, synchronise, table

from s3prl_mtl.training.evaluation import Evaluator
from s3prl_mtl.training.runner import MultiTaskRunner

SPLITS = [("asr", "dev-clean"), ("pr", "dev")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="base", choices=sorted(SIZES))
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--seconds", default="1,20,50,100,200", help="audio of a batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, help="the corpora (default: a new mini corpus)")
    parser.add_argument("--log", type=Path, help="append a JSON line for each row to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    found = machine(torch.device(arguments.device))
    show_machine(found)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = corpora(arguments.data, folder)
        config = run_config(arguments, [task for task, _ in SPLITS], data, folder)
        runner = MultiTaskRunner(config, folder / "run")
        evaluator = Evaluator(runner.run, log_level=logging.DEBUG)
        experts = {task: runner.tasks[task].expert for task, _ in SPLITS}
        audio = sum(experts[task].cuts(split).durations.sum() for task, split in SPLITS)

        def seconds(together: bool) -> float:
            synchronise(runner.device)
            start = time.perf_counter()
            for splits in [SPLITS] if together else [[split] for split in SPLITS]:
                evaluator.evaluate(splits)
            return time.perf_counter() - start

        for limit in map(float, arguments.seconds.split(",")):
            for expert in experts.values():
                expert.datarc["eval_batch_seconds"] = limit
            seconds(together=True)
            both, each = [], []
            for _ in range(arguments.repeats):
                both.append(seconds(together=True))
                each.append(seconds(together=False))
            ratio = statistics.median(b / a for a, b in zip(both, each, strict=True))
            rates = [f"{audio / statistics.median(way):.2f}" for way in (both, each)]
            rows.append([f"{limit:g}", *rates, f"{ratio:.2f}"])
            if arguments.log:
                measured = {"together": both, "alone": each, "audio": audio}
                settings = {"benchmark": "evaluate", "size": arguments.size, "batch_seconds": limit}
                append(arguments.log, {**settings, **found, **measured})
    print(table(["s of a batch", "s of audio / s", "one after the other", "ratio"], rows))


if __name__ == "__main__":
    main()
