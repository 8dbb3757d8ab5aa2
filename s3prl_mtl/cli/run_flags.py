"""`train` and `evaluate`: their flags, and the choice between the two by -m in `run_mtl.py`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from s3prl_mtl.cli.parser import add_encoder_settings, add_manifest, add_rescan, add_trust, call
from s3prl_mtl.distributed import DEFAULT_TIMEOUT_SECONDS
from s3prl_mtl.errors import UserError
from s3prl_mtl.settings import packaged_settings
from s3prl_mtl.tracking.console import OUTPUT

if TYPE_CHECKING:
    from s3prl_mtl.api.run_results import RunResults

_EVALUATION_FLAGS = {"--best": "best", "-t": "evaluate_split"}
_TRAINING_FLAGS = {
    "-a": "auto_resume",
    "-i": "init_ckpt",
    "-n": "expname",
    "--balancer": "balancer",
    "--checkpoint_activations": "checkpoint_activations",
    "--dry-run": "dry_run",
    "--freeze_upstream": "freeze_upstream",
    "--init_heads_only": "init_heads_only",
    "--log_conflicts": "log_conflicts",
    "--max_pass_seconds": "max_pass_seconds",
    "--num_workers": "num_workers",
    "--parallel": "parallel",
    "--placement": "placement",
    "--sampling": "sampling",
    "--fraction": "fraction",
    "--steps": "steps",
    "--unfreeze_after": "unfreeze_after",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of s3prl's multi-task branch, and those of this package.

    A flag that changes a setting also needs its key in `ARGUMENT_KEYS` (`config/overrides.py`).
    """
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "-m",
        "--mode",
        choices=["train", "evaluate"],
        default="train",
        help="mode without a command",
    )
    what.add_argument("-u", "--upstream", metavar="NAME", help="the encoder, such as hubert")
    what.add_argument("-k", "--upstream_ckpt", metavar="PATH", help="its checkpoint file")
    what.add_argument("-g", "--upstream_model_config", metavar="YAML", help="its config file")
    add_trust(what)
    what.add_argument(
        "-d", "--downstream", metavar="TASKS", help="asr,pr,...; all = SUPERB's nine; all,-ks"
    )
    what.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")
    add_manifest(what)
    add_encoder_settings(what)
    # A flag of the branch, which freezes the encoder by default; here the encoder is trained.
    train = what.add_mutually_exclusive_group()
    train.add_argument(
        *("-f", "--upstream_trainable"),
        action="store_const",
        const=False,
        dest="freeze_upstream",
        help="train the encoder (the default)",
    )
    train.add_argument(
        "--freeze_upstream", action="store_const", const=True, help="train the heads only"
    )
    what.add_argument(
        "--unfreeze_after", metavar="N", type=int, help="train the heads only for the first N steps"
    )

    how = parser.add_argument_group("settings")
    how.add_argument(
        "-c",
        "--config",
        metavar="YAML",
        action="append",
        default=[],
        help=f"a file, or packaged settings: {', '.join(packaged_settings())}",
    )
    how.add_argument(
        "-o", "--override", metavar="KEY=VALUE,,...", help='"config.optimizer.lr=1e-4,,args.seed=1"'
    )
    how.add_argument("--steps", type=int, help="total steps")
    how.add_argument(
        "--checkpoint_activations",
        action="store_true",
        help="less memory, more computation",
    )
    how.add_argument(
        "--max_pass_seconds",
        type=float,
        metavar="S",
        help="seconds of audio in one pass of a step (default: as fit into the GPU)",
    )
    how.add_argument(
        "--num_workers",
        type=int,
        metavar="N",
        help="processes of each rank that read training batches (default: by cores; 0: none)",
    )
    how.add_argument(
        "--sampling",
        metavar="RULE",
        help="the tasks of a step: all, uniform, proportional, temperature:T, weights:asr=2,..., "
        "every:N",
    )
    how.add_argument(
        "--fraction",
        metavar="TASK=F,...",
        help="train on a fixed share of a task's utterances: asr=0.1",
    )
    how.add_argument(
        "--noise", metavar="DIR[:snr=LOW-HIGH]", help="add noise of a folder: musan/noise:snr=5-20"
    )
    how.add_argument("--reverb", metavar="DIR", help="room impulse responses to convolve with")
    how.add_argument("--speed", metavar="F,...", help="factors of the speed: 0.9,1.0,1.1")
    combine = how.add_mutually_exclusive_group()
    combine.add_argument(
        "--balancer",
        metavar="NAME[:OPTION=VALUE,...]",
        help="method of combining tasks: fixed:asr=1,ks=0.3 (`s3prl-mtl balancers` lists them)",
    )
    combine.add_argument(
        "--auto_loss_weights",
        action="store_const",
        const="uncertainty",
        dest="balancer",
        help="the same as --balancer uncertainty",
    )
    combine.add_argument(
        "--pcgrad",
        action="store_const",
        const="pcgrad:per_parameter=true",
        dest="balancer",
        help="the same as --balancer pcgrad:per_parameter=true",
    )
    how.add_argument(
        "--log_conflicts",
        type=int,
        metavar="K",
        help="compare the gradients of the tasks every K steps",
    )
    how.add_argument(
        "--track",
        metavar="NAME,...",
        help="show the numbers in tensorboard (the default), csv, wandb, mlflow; none",
    )
    how.add_argument("--seed", type=int)
    how.add_argument("--device", help="auto, cpu, cuda, cuda:1")
    how.add_argument("--cache_dir", metavar="DIR", help="downloads and scanned corpora")
    add_rescan(how)

    several = parser.add_argument_group("several processes, started with torchrun")
    several.add_argument(
        "--parallel",
        choices=["data", "task"],
        help="give each rank a share of every task, or few tasks",
    )
    several.add_argument(
        "--placement",
        metavar="RANK:TASKS;...",
        help='tasks of each rank: "0:asr;1:pr,ks" (--parallel task)',
    )
    several.add_argument("--backend", choices=["gloo", "nccl"], help="backend of torch.distributed")
    several.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=DEFAULT_TIMEOUT_SECONDS,
        help="maximum time that a rank waits for the others (%(default)g)",
    )

    where = parser.add_argument_group("run folder and initial weights")
    where.add_argument("-n", "--expname", metavar="NAME", help="the run is result/downstream/NAME")
    where.add_argument("-p", "--expdir", metavar="DIR", help="the run's folder")
    where.add_argument(
        "-e", "--past_exp", metavar="RUN", help="resume, or evaluate: a run's folder or .ckpt file"
    )
    where.add_argument(
        "-a", "--auto_resume", action="store_true", help="resume if the folder has a checkpoint"
    )
    where.add_argument(
        "-i",
        "--init_ckpt",
        metavar="PATH",
        action="append",
        help="weights to start from: a run, a checkpoint, or a folder of them; may be repeated",
    )
    where.add_argument(
        "--init_heads_only",
        action="store_true",
        help="take only the heads from -i: not the encoder, nor the layer weights",
    )
    where.add_argument("--init_upstream_ckpt", metavar="PATH", help="encoder weights to start from")
    where.add_argument(
        "-t", "--evaluate_split", metavar="TASK:SPLIT,...", help='"asr:test-clean,ks:test"'
    )
    where.add_argument(
        "--best", action="store_true", help="-m evaluate: each task with its own best checkpoint"
    )
    where.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything with one batch of each split; no training",
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def _refuse_flags_without_effect(arguments: argparse.Namespace) -> None:
    others, advice = (
        (_EVALUATION_FLAGS, "evaluate a run: s3prl-mtl evaluate -e RUN")
        if arguments.mode == "train"
        else (_TRAINING_FLAGS, "train: s3prl-mtl train")
    )
    for flag, name in others.items():
        if getattr(arguments, name) not in (None, False, []):
            what = "training" if arguments.mode == "train" else "an evaluation"
            raise UserError(
                f"The flag has no effect on {what}.",
                where=flag,
                fix=f"Leave it out, or {advice} {flag} ...",
                code="conflicting-options",
            )


def run(arguments: argparse.Namespace) -> None:
    """Train or evaluate, alone or as one rank of several, and show the results.

    Raises:
        UserError: flags that exclude each other, or that have no effect.
    """
    _refuse_flags_without_effect(arguments)
    if arguments.mode == "train":
        _train(arguments)
    else:
        _evaluate(arguments)


def _train(arguments: argparse.Namespace) -> None:
    from s3prl_mtl.api.run_results import UnscoredSplits
    from s3prl_mtl.api.training import train
    from s3prl_mtl.tracking.results_table import results_table

    def show(results: RunResults) -> None:
        if results.is_lead and arguments.dry_run:
            OUTPUT.print("All checks passed; nothing was trained.")
        elif results.is_lead:
            OUTPUT.print(results_table(results.folder))
            OUTPUT.print(f"The run is in {results.folder}", soft_wrap=True)

    try:
        show(call(train, arguments, progress=None))
    except UnscoredSplits as error:
        show(error.results)
        raise


def _evaluate(arguments: argparse.Namespace) -> None:
    from s3prl_mtl.api.evaluation import evaluate
    from s3prl_mtl.api.run_results import UnscoredSplits
    from s3prl_mtl.tracking.results_table import results_table

    def show(results: RunResults) -> None:
        if results.is_lead:
            table = results_table(results.folder, config=results.config, splits=results.splits)
            OUTPUT.print(table)

    try:
        show(call(evaluate, arguments, progress=None))
    except UnscoredSplits as error:
        show(error.results)
        raise
