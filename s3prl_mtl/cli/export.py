"""`export`: write the encoder of a run for another program, and upload it."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_mtl.cli.parser import add_trust, call
from s3prl_mtl.export.formats import PACKAGES
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.training.signals import exit_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run's folder, or one of its .ckpt files")
    parser.add_argument("--format", metavar="FORMAT", required=True, help=", ".join(PACKAGES))
    parser.add_argument("-o", "--out", type=Path, required=True, help="the file or folder to write")
    wrapper = parser.add_argument_group("output of xares and hear (default: the last hidden state)")
    wrapper.add_argument(
        "--layer", type=int, metavar="N", help="hidden state N (0: input of layer 1)"
    )
    wrapper.add_argument("--task", metavar="TASK", help="the weighted sum of layers of a task")
    upload = parser.add_argument_group("upload with huggingface_hub, after `hf auth login`")
    upload.add_argument("--push", metavar="REPO", help="USER/NAME, created if it does not exist")
    upload.add_argument("--private", action="store_true", help="create a private repository")
    upload.add_argument("--revision", metavar="BRANCH", help="created if it does not exist")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write the file or folder, upload it if asked, and print where it is."""
    from s3prl_mtl.api.encoders import export

    with exit_on_signals():
        path = call(export, arguments)
    from s3prl_mtl.export.model_card import count_fields  # heavy: not before a mistake is found

    lines = [f"Wrote {path}"]
    fields = count_fields(path)
    if fields:
        lines.append(f"Its model card, README.md, has {fields} fields to fill in (TODO)")
    if arguments.push is not None:
        lines.append(f"Uploaded it to {arguments.push}")
    for line in lines:
        OUTPUT.print(line, soft_wrap=True, markup=False, highlight=False)
