"""Measure how the rate of training depends on processes, tasks and the lengths of utterances.

    python benchmarks/scaling.py [--device cuda] [--processes 1,2,4] [--data DIR]

Whole training steps on the mini corpus (`loading.py`): by 1, 2 and 4 processes with batches of the
same size each, and with 1, 3 and 9 tasks. Steps of the encoder (`step.py`) on utterances of 1, 3,
10 and 30 s, as many as give the same amount of audio. The rate is seconds of audio a second, the
median.
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
from typing import Any

import torch
from common import FOLDER, SIZES, append, corpora, machine, show_machine, table
from step import BATCHES, PRECISIONS, WARM_UP, measure, packed


def whole_steps(
    arguments: argparse.Namespace, data: Path, folder: Path, processes: int, tasks: Sequence[str]
) -> float:
    """The rate of whole training steps."""
    log = folder / "log.jsonl"
    log.unlink(missing_ok=True)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = ["--device", arguments.device, "--size", arguments.size, "--tasks", ",".join(tasks)]
    words += ["--scale", str(arguments.scale), "--precision", arguments.precision]
    words += ["--repeats", str(arguments.repeats), "--data", str(data), "-l", str(log)]
    command = [sys.executable, *launch, str(FOLDER / "loading.py"), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record = json.loads(log.read_text())
    return record["audio"] / statistics.median(record["step"])


def encoder_steps(arguments: argparse.Namespace, seconds: float, audio: float) -> float:
    """The rate of steps of the encoder on utterances of one length."""
    device = torch.device(arguments.device)
    count = max(1, round(audio / seconds))
    draws = [
        [[0.1 * torch.randn(int(16_000 * seconds)) for _ in range(count)]]
        for _ in range(WARM_UP + arguments.repeats)
    ]
    kind = PRECISIONS[arguments.precision]
    found = measure(lambda: packed(SIZES[arguments.size], device, kind), draws, device)
    return statistics.median(found[0]) if found is not None else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="base", choices=sorted(SIZES))
    parser.add_argument("--scale", type=float, default=1.0, help="multiple of the branch's batches")
    parser.add_argument("--tasks", default=",".join(BATCHES))
    parser.add_argument("--precision", default="fp32", choices=sorted(PRECISIONS))
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--seconds", default="1,3,10,30", help="lengths of utterances")
    parser.add_argument("--audio", type=float, default=60.0, help="seconds of audio of a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, help="the corpora (default: a new mini corpus)")
    parser.add_argument("--log", type=Path, help="append a JSON line to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    found = machine(torch.device(arguments.device))
    show_machine(found)
    tasks = arguments.tasks.split(",")
    rates: dict[str, dict[str, Any]] = {"processes": {}, "tasks": {}, "seconds": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = corpora(arguments.data, folder)
        for processes in map(int, arguments.processes.split(",")):
            rate = whole_steps(arguments, data, folder, processes, tasks)
            rates["processes"][str(processes)] = rate
        for count in sorted({1, min(3, len(tasks)), len(tasks)}):
            rates["tasks"][str(count)] = whole_steps(arguments, data, folder, 1, tasks[:count])
    for length in arguments.seconds.split(","):
        rates["seconds"][length] = encoder_steps(arguments, float(length), arguments.audio)
    rows = [
        [what, key, f"{rate:.2f}", f"{rate / next(iter(values.values())):.2f}"]
        for what, values in rates.items()
        for key, rate in values.items()
    ]
    print(table(["varied", "", "s of audio / s", "first = 1"], rows))
    if arguments.log:
        settings = {"size": arguments.size, "tasks": tasks, "precision": arguments.precision}
        append(arguments.log, {"benchmark": "scaling", **settings, **found, **rates})


if __name__ == "__main__":
    main()
