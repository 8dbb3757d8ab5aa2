"""`cluster`: label the frames of audio with clusters, the targets of HuBERT's pre-training."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_mtl.cli.parser import add_rescan, add_trust, call
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.training.signals import exit_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the labels")
    audio = parser.add_argument_group("audio")
    source = audio.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--audio", type=Path, metavar="PATH", help="a folder, or a list of fairseq (.tsv)"
    )
    source.add_argument(
        "-d", "--downstream", metavar="TASKS", help="the training audio of tasks: asr,pr,... or all"
    )
    audio.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")
    audio.add_argument("-c", "--config", metavar="YAML", action="append", default=[])
    audio.add_argument("-o", "--override", metavar="KEY=VALUE,,...", help="settings of the tasks")
    audio.add_argument("--cache_dir", metavar="DIR", help="downloads and scanned corpora")
    add_rescan(audio)
    audio.add_argument(
        "--split", default="train", metavar="NAME", help="name of the files (%(default)s)"
    )
    features = parser.add_argument_group("features")
    features.add_argument(
        "--features", metavar="KIND", help="mfcc, or layer:N: a hidden state of the encoder (mfcc)"
    )
    encoder = features.add_mutually_exclusive_group()
    encoder.add_argument("-u", "--upstream", metavar="NAME", help="the encoder, such as hubert")
    encoder.add_argument("--run", type=Path, metavar="RUN", help="the encoder of a run")
    features.add_argument("-k", "--upstream_ckpt", metavar="PATH", help="the encoder's checkpoint")
    features.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add_trust(features)
    kmeans = parser.add_argument_group("k-means")
    kmeans.add_argument(
        "--centers", type=Path, metavar="FILE", help="label with these centres; skip k-means"
    )
    kmeans.add_argument(
        "--clusters", type=int, default=100, metavar="K", help="number of clusters (%(default)s)"
    )
    kmeans.add_argument(
        "--fraction", type=float, default=1.0, metavar="F", help="fraction of the files to cluster"
    )
    kmeans.add_argument(
        "--memory",
        type=int,
        default=1024,
        metavar="MIB",
        help="memory for frames, in MiB (%(default)s)",
    )
    kmeans.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> None:
    """Write the labels, with a progress bar on a terminal.

    Raises:
        UserError: a flag is wrong, an output exists, or the audio or the encoder cannot be used.
    """
    from s3prl_mtl.api.clusters import cluster

    with exit_on_signals():
        made = call(cluster, arguments, progress=None)
    unused = int((made.counts == 0).sum())
    OUTPUT.print(
        f"Wrote {made.files} and .km: {made.counts.sum()} labels of {len(made.counts)} classes"
        + (f" ({unused} unused)" if unused else "")
        + f", {made.rate:g} per second.",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
