"""The command line: `run_mtl.py`, `s3prl-mtl` and `python -m s3prl_mtl`."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from s3prl_mtl.authoring import listing
from s3prl_mtl.cli import authoring
from s3prl_mtl.cli import predict as inference
from s3prl_mtl.cli import run as commands
from s3prl_mtl.cli.versions import ShowVersions
from s3prl_mtl.distributed.world import DEFAULT_TIMEOUT_SECONDS, RankLost
from s3prl_mtl.errors import SharedMistake, UserError, error_summary
from s3prl_mtl.export import command as exporting
from s3prl_mtl.registry.fault import plugin_at_fault
from s3prl_mtl.tracking.console import MESSAGES, show_log
from s3prl_mtl.training.signals import Stopped

logger = logging.getLogger(__name__)

MISTAKE_OF_THE_USER = 2
FAILURE_OF_OURS = 1
INTERRUPTED = 130

# What a disk, a mount or a path can do to a program.
ENVIRONMENT = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Returns:
        0; 2 for a mistake of the user (shown as one paragraph), 1 for a failure of the program.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else ""
    parser = COMMANDS[command]() if command in COMMANDS else run_parser()
    arguments = parser.parse_args(words[1:] if command in COMMANDS else words)
    rank = os.environ.get("RANK") or "0"
    show_log(arguments.verbose, on_terminal=rank == "0")
    try:
        arguments.action(arguments)
    except Stopped as stop:
        logger.warning("%s Go on with -a.", stop)
        return 0
    except UserError as mistake:
        logger.debug("Where the error was raised:", exc_info=True)
        if rank == "0" or not isinstance(mistake, SharedMistake):
            _show_mistake(f"{mistake} [{mistake.code}]" if arguments.verbose else str(mistake))
        return MISTAKE_OF_THE_USER
    except RankLost as loss:
        logger.debug("Where the error was raised:", exc_info=True)
        if not loss.spoken_for:
            _show_mistake(str(loss))
        return FAILURE_OF_OURS
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            return _failure(error)
        logger.debug("Where the error was raised:", exc_info=True)
        where = f" Where: {error.filename}." if error.filename else ""
        _show_mistake(f"A file cannot be written or read: {error.strerror}.{where}")
        return MISTAKE_OF_THE_USER
    except KeyboardInterrupt:
        MESSAGES.print("interrupted", style="red")
        return INTERRUPTED
    except Exception as error:
        return _failure(error)
    return 0


def _failure(error: Exception) -> int:
    """Say whose failure an error is. Inside the handler of the error."""
    if not _show_failure_of_plugin(error):
        logger.exception("This is a failure of the program, not a mistake of yours.")
    return FAILURE_OF_OURS


def _show_failure_of_plugin(error: Exception) -> bool:
    """Say whose failure it is, where it is that of a package with plugins."""
    found = plugin_at_fault(error)
    if found is None:
        return False
    plugin, frame = found
    logger.debug("Where the error was raised:", exc_info=True)
    _show_mistake(
        f"The code of package {plugin} failed: {error_summary(error)}. "
        f"Where: {frame.path}, line {frame.line}, in {frame.function}. "
        "Fix: It is a failure of that package; --verbose shows how it came there."
    )
    return True


def _show_mistake(text: str) -> None:
    MESSAGES.print(f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)


def run_parser() -> argparse.ArgumentParser:
    """The flags of s3prl's multi-task branch, and a few of our own."""
    parser = _parser(
        "run_mtl.py",
        "Train one self-supervised speech encoder on several tasks at once, or evaluate it.",
        commands.run,
    )
    parser.epilog = "Other commands: python -m s3prl_mtl " + " | ".join(COMMANDS)
    what = parser.add_argument_group("what to run")
    what.add_argument("-m", "--mode", choices=["train", "evaluate"], default="train")
    what.add_argument("-u", "--upstream", metavar="NAME", help="the encoder, such as hubert")
    what.add_argument("-k", "--upstream_ckpt", metavar="PATH", help="its checkpoint file")
    what.add_argument("-g", "--upstream_model_config", metavar="YAML", help="its config file")
    what.add_argument("-d", "--downstream", metavar="TASKS", help="asr,pr,...; all = SUPERB's nine")
    what.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")
    what.add_argument(
        "-s",
        "--upstream_feature_selection",
        choices=["hidden_states", "layer_results", "last_hidden_state"],
        help="the layers that the features are a weighted sum of",
    )
    # The branch's flag: there the encoder is frozen without it; here it is trained by default.
    train = what.add_mutually_exclusive_group()
    train.add_argument(
        "-f", "--upstream_trainable", action="store_true", help="train the encoder (the default)"
    )
    train.add_argument("--freeze_upstream", action="store_true", help="train the heads only")

    how = parser.add_argument_group("settings")
    how.add_argument("-c", "--config", metavar="YAML", action="append", default=[])
    how.add_argument(
        "-o", "--override", metavar="KEY=VALUE,,...", help='"config.optimizer.lr=1e-4,,args.seed=1"'
    )
    how.add_argument("--steps", type=int, help="total steps")
    how.add_argument("--precision", choices=["fp32", "bf16"])
    how.add_argument("--seed", type=int)
    how.add_argument("--device", help="auto, cpu, cuda, cuda:1")
    how.add_argument("--cache_dir", metavar="DIR", help="downloads and scanned corpora")

    several = parser.add_argument_group("several processes, started with torchrun")
    several.add_argument(
        "--parallel", choices=["data", "task"], help="each rank a share of every task, or few tasks"
    )
    several.add_argument(
        "--placement", metavar="RANK:TASKS;...", help='by hand: "0:asr;1:pr,ks" (--parallel task)'
    )
    several.add_argument("--backend", choices=["gloo", "nccl"], help="of torch.distributed")
    several.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=DEFAULT_TIMEOUT_SECONDS,
        help="how long a rank waits for the others (%(default)g)",
    )

    where = parser.add_argument_group("where to start and what to write")
    where.add_argument("-n", "--expname", metavar="NAME", help="the run is result/downstream/NAME")
    where.add_argument("-p", "--expdir", metavar="DIR", help="the run's folder itself")
    where.add_argument(
        "-e", "--past_exp", metavar="RUN", help="resume, or evaluate: a run's folder or .ckpt file"
    )
    where.add_argument(
        "-a", "--auto_resume", action="store_true", help="resume if the run's folder has one"
    )
    where.add_argument("-i", "--init_ckpt", metavar="PATH", help="weights to start from")
    where.add_argument("--init_upstream_ckpt", metavar="PATH", help="encoder weights to start from")
    where.add_argument(
        "-t", "--evaluate_split", metavar="TASK:SPLIT,...", help='"asr:test-clean,ks:test"'
    )
    where.add_argument(
        "--dry-run", action="store_true", help="check everything, one batch of each, no training"
    )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def _make_corpus_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "make-corpus",
        "Synthesise a small spoken corpus in the folder layouts of the nine tasks.",
        commands.make_mini_corpus,
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", choices=["tiny", "mini"], default="mini")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _tasks_parser() -> argparse.ArgumentParser:
    parser = _parser("tasks", "List the installed tasks.", listing.list_tasks)
    parser.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")
    return parser


def _upstreams_parser() -> argparse.ArgumentParser:
    return _parser("upstreams", "List the installed upstreams.", listing.list_upstreams)


def _new_task_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "new-task", "Write a package with a task of your own.", authoring.write_new_task
    )
    authoring.add_new_task_arguments(parser)
    return parser


def _check_task_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "check-task",
        "Try out whether a task keeps its contract (docs/plugins.md).",
        authoring.check,
    )
    authoring.add_check_task_arguments(parser)
    return parser


def _predict_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "predict", "What a trained run says of audio files, as JSON lines.", inference.predict
    )
    inference.add_arguments(parser)
    return parser


def _results_parser() -> argparse.ArgumentParser:
    parser = _parser("results", "Show the results of a run as a table.", commands.show_results)
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--all", action="store_true", help="every evaluated split and metric")
    return parser


def _export_parser() -> argparse.ArgumentParser:
    parser = _parser("export", "Write the encoder of a run for another program.", exporting.run)
    exporting.add_arguments(parser)
    return parser


COMMANDS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "make-corpus": _make_corpus_parser,
    "tasks": _tasks_parser,
    "upstreams": _upstreams_parser,
    "new-task": _new_task_parser,
    "check-task": _check_task_parser,
    "results": _results_parser,
    "export": _export_parser,
    "predict": _predict_parser,
}


def _parser(
    name: str, description: str, action: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    program = name if name.endswith(".py") else f"s3prl-mtl {name}"
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.set_defaults(action=action)
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and debug messages")
    parser.add_argument("--version", action=ShowVersions)
    return parser
