"""Measure what the pre-training of hubert_tiny gives on the mini corpus.

    python benchmarks/transfer.py frozen [--steps 300] [--jobs 2]
    python benchmarks/transfer.py labels [--steps 200] [--jobs 2]

`frozen` trains heads on the frozen encoder, pre-trained and with its initial weights, with the same
steps and seeds. `labels` trains encoder and heads on a tenth of the labels and on all of them:
supervised from initial weights, supervised from the pre-trained ones, and from initial weights with
masked prediction of the same audio in each step. The table has the first metric of each dev split
after the last step: mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from combining import cell
from common import append, corpora, machine, show_machine, table
from short_runs import add_arguments, folder_of_runs, short_runs

from s3prl_mtl.config import parse_tasks

TENTH, ALL = "10 %", "100 %"


def call(*words: str | Path) -> None:
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)


def initial_weights(folder: Path) -> Path:
    """The weights that the pre-training of hubert_tiny starts from."""
    path = folder / "initial.pt"
    if not path.is_file():
        call("s3prl_mtl.upstreams.hubert.tiny", path)
    return path


def masked_prediction(data: Path, tasks: str, folder: Path) -> Path:
    """A config file with the classes of the tasks' training audio, from the pre-trained encoder."""
    path = folder / "ssl.yaml"
    if path.is_file():
        return path
    labels = folder / "labels"
    shutil.rmtree(labels, ignore_errors=True)
    features = ("--features", "layer:2", "-u", "hubert_tiny")
    call("s3prl_mtl", "cluster", labels, "-d", tasks, "--data", data, *features)
    call("s3prl_mtl", "make-corpus", folder / "dev", "--size", "tiny", "--seed", "2")
    centers = ("--centers", labels / "centers.npz")
    call("s3prl_mtl", "cluster", labels, "--audio", folder / "dev", "--split", "dev", *centers)
    settings = {"path": str(labels), "num_workers": 0, "train_batch_seconds": 20}
    # Its convolutional features are large: fairseq's weight of 10 would dominate the loss.
    expert = {"datarc": settings, "lossrc": {"loss_weights": [0.001]}}
    path.write_text(yaml.safe_dump({"ssl": {"test_splits": ["dev"], "downstream_expert": expert}}))
    return path


def label_variants(
    tasks: str, data: Path, initial: Path, folder: Path
) -> dict[str, Sequence[str | Path]]:
    names = parse_tasks(tasks)
    config = masked_prediction(data, tasks, folder)
    ways: dict[str, Sequence[str | Path]] = {
        "supervised": ["-k", initial],
        "ssl, then supervised": [],
        "both at once": ["-k", initial, "-d", ",".join([*names, "ssl"]), "-c", config],
    }
    few = ["--fraction", ",".join(f"{name}=0.1" for name in names)]
    return {
        f"{way}, {share}": [*words, *(few if share == TENTH else [])]
        for share in (TENTH, ALL)
        for way, words in ways.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["frozen", "labels"])
    add_arguments(parser)
    arguments = parser.parse_args()
    found = machine(torch.device(arguments.device))
    show_machine(found)
    with folder_of_runs(arguments.folder) as folder:
        arguments.data = corpora(arguments.data, folder)
        initial = initial_weights(folder)
        variants: dict[str, Sequence[str | Path]] = {
            "initial": ["--freeze_upstream", "-k", initial],
            "pre-trained": ["--freeze_upstream"],
        }
        if arguments.what == "labels":
            variants = label_variants(arguments.tasks, arguments.data, initial, folder)
        words = {variant: list(map(str, flags)) for variant, flags in variants.items()}
        runs = short_runs(arguments, words, folder)
    first = next(iter(runs.values()))[0]
    keys = [key for key in first.values if key[1] != "training loss" and key[0] != "ssl"]
    lines = [[*key, *(cell(runs[variant], key) for variant in runs)] for key in keys]
    print(table(["task", "value", *runs], lines))
    if arguments.log:
        values = {
            variant: [{" ".join(key): v for key, v in run.values.items()} for run in of_variant]
            for variant, of_variant in runs.items()
        }
        record = {"benchmark": f"transfer {arguments.what}", "steps": arguments.steps}
        append(arguments.log, {**record, **found, "values": values})


if __name__ == "__main__":
    main()
