"""Measure the HuBERT encoder: loading a full-size file, and packed against padded batches.

    python benchmarks/encoder.py [--threads 1] [--repeats 5] [--device cpu]

Loading is measured in fresh processes (seconds and peak resident memory), on a random file of
HuBERT Base's size with an optimizer state, as published files have. Timings are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from common import SIZES, seconds_of
from torch import Tensor

from s3prl_mtl.fileio.safe_torch import NamingPickle, from_plain
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from s3prl_mtl.upstreams.hubert.fairseq_file import make_header

LOAD = """
import json, sys, time
import torch
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert

def peak_kilobytes():
    # Not getrusage: its maximum is inherited from the parent process.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = peak_kilobytes()
start = time.perf_counter()
model = load_hubert(sys.argv[1])
seconds = time.perf_counter() - start
peak = peak_kilobytes()
parameters = sum(parameter.numel() for parameter in model.parameters())
print(json.dumps(dict(seconds=seconds, before=before, peak=peak, parameters=parameters)))
"""
UTTERANCE_SECONDS = [1.0, 2.3, 7.2, 3.1, 1.0, 2.2, 4.8, 2.0]


def measure_loading(repeats: int) -> None:
    model = Hubert(SIZES["base"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.pt"
        moments = {
            index: {"exp_avg": torch.randn_like(value), "exp_avg_sq": torch.rand_like(value)}
            for index, value in enumerate(model.parameters())
        }
        content = {
            **{key: from_plain(value) for key, value in make_header(model.config).items()},
            "model": model.state_dict(),
            "last_optimizer_state": {"state": moments},
        }
        torch.save(content, path, pickle_module=NamingPickle)
        del model, moments, content
        runs = []
        for _ in range(repeats):
            answer = subprocess.run(
                [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True
            )
            runs.append(json.loads(answer.stdout))
        size = path.stat().st_size / 1e6
    print(
        f"load: {size:.0f} MB file, {runs[0]['parameters'] / 1e6:.1f} M parameters: "
        f"{statistics.median(run['seconds'] for run in runs):.2f} s, "
        f"peak {max(run['peak'] for run in runs) / 1e6:.2f} GB "
        f"({max(run['before'] for run in runs) / 1e6:.2f} GB of it before loading)"
    )


def median_seconds(
    actions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median of each action, taken in turns so that a busy moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            seconds[name].append(seconds_of(action, device))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def measure_batches(repeats: int, device: torch.device) -> None:
    model = Hubert(SIZES["base"]).to(device).eval()
    wavs = [0.1 * torch.randn(int(16_000 * s), device=device) for s in UTTERANCE_SECONDS]
    longest = max(len(wav) for wav in wavs)
    padded = [torch.nn.functional.pad(wav, (0, longest - len(wav))) for wav in wavs]

    def forward(batches: list[list[Tensor]]) -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    def train(batches: list[list[Tensor]]) -> None:
        model.zero_grad()
        for batch in batches:
            model(batch).states.mean().backward()

    modes = {
        "packed": [wavs],
        "one by one": [[wav] for wav in wavs],
        "padded to the longest": [padded],
    }
    print(f"{len(wavs)} utterances, {sum(UTTERANCE_SECONDS):.0f} s of speech, {device}")
    for title, action in {"forward": forward, "with gradients": train}.items():
        actions = {name: partial(action, batches) for name, batches in modes.items()}
        medians = median_seconds(actions, repeats, device)
        for name, seconds in medians.items():
            ratio = seconds / medians["packed"]
            print(f"{title:>14}, {name:>21}: {seconds:6.2f} s ({ratio:.2f}x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    measure_loading(arguments.repeats)
    measure_batches(arguments.repeats, torch.device(arguments.device))


if __name__ == "__main__":
    main()
