"""Common to the benchmarks: the machine, the limit of its matrix products, timing, the log."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from s3prl_mtl.config import Config, build_config
from s3prl_mtl.data.mini_corpus import make_corpus
from s3prl_mtl.upstreams import write_fairseq_checkpoint
from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.encoder import Hubert

FOLDER = Path(__file__).parent

SIZES: dict[str, HubertConfig] = {
    # As published: label embeddings, gradient of the convolutions, dropout.
    "base": HubertConfig(
        final_proj_dim=256,
        label_embeddings=(504, 256),
        feature_grad_mult=0.1,
        dropout_input=0.1,
    ),
    "large": HubertConfig(
        extractor_mode="layer_norm",
        conv_bias=True,
        encoder_layers=24,
        encoder_embed_dim=1024,
        encoder_ffn_embed_dim=4096,
        encoder_attention_heads=16,
        layer_norm_first=True,
        normalize=True,
        dropout=0.0,
        attention_dropout=0.0,
    ),
    # For a quick look whether a benchmark runs.
    "tiny": HubertConfig(
        encoder_layers=2,
        encoder_embed_dim=96,
        encoder_ffn_embed_dim=192,
        encoder_attention_heads=4,
        conv_feature_layers=((32, 10, 5), *((32, 3, 2),) * 4, *((32, 2, 2),) * 2),
        conv_pos_groups=8,
    ),
}


def machine(device: torch.device) -> dict[str, Any]:
    """What a number depends on: device, threads, versions, commit."""
    commit = ""
    if shutil.which("git") is not None:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit,
    }


def show_machine(found: Mapping[str, Any]) -> None:
    """Print what :func:`machine` found, on a line."""
    print(", ".join(f"{key} {value}" for key, value in found.items() if value))


def corpora(given: Path | None, folder: Path) -> Path:
    """The folder of corpora that was given, or a new mini corpus in a folder."""
    if given is not None:
        return given
    make_corpus(folder / "corpus")  # which is left as it is if it is complete
    return folder / "corpus"


def run_config(
    arguments: argparse.Namespace,
    tasks: Sequence[str],
    data: Path,
    folder: Path,
    settings: str = "",
) -> Config:
    """The config of a run with an encoder of random weights, which is written into a folder.

    Args:
        arguments: with `size`, `device` and `precision`.
        tasks: of the run.
        data: their corpora.
        folder: of the encoder and of the scanned manifests.
        settings: further ones, as for `-o`.
    """
    encoder = folder / "encoder.pt"
    if not encoder.exists():
        write_fairseq_checkpoint(encoder, Hubert(SIZES[arguments.size]))
    flags = {
        "upstream": {"name": "hubert", "ckpt": str(encoder)},
        "downstream": list(tasks),
        "data": str(data),
        "cache_dir": str(folder / "cache"),
        "device": arguments.device,
        "precision": arguments.precision,
    }
    return build_config([], flags, settings or None)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Wall time on a GPU; on a CPU the processor time, which other programs change less."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    synchronise(device)
    start = clock()
    action()
    synchronise(device)
    return clock() - start


def matrix_product(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product: the limit of the machine."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    repeats = 10
    a @ a
    return repeats * 2 * size**3 / seconds_of(lambda: [a @ a for _ in range(repeats)], device)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
