"""The command line: `run_mtl.py`, `s3prl-mtl` and `python -m s3prl_mtl`."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from s3prl_mtl.cli.parser import Parser, unknown_word
from s3prl_mtl.cli.versions import ShowVersions
from s3prl_mtl.errors import RankLost, SharedMistake, UserError, error_summary
from s3prl_mtl.fileio.paths import expand_home
from s3prl_mtl.tracking.console import MESSAGES, log_warnings_once, show_log, show_message
from s3prl_mtl.training.signals import Stopped

logger = logging.getLogger(__name__)

MISTAKE_OF_THE_USER = 2
FAILURE_OF_OURS = 1
INTERRUPTED = 130

# Errors of disks, mounts and paths: the user can correct them.
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
        0, also after a scheduler's signal; 2 for a mistake of the user, shown as one paragraph; 1
        for an internal error or a lost rank; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    rank = os.environ.get("RANK") or "0"
    verbose = "--verbose" in words
    show_log(verbose, on_terminal=rank == "0")
    log_warnings_once()
    try:
        arguments = _parse(words)
        if arguments.verbose and not verbose:  # abbreviated
            verbose = True
            show_log(verbose, on_terminal=rank == "0")
        _expand_home(arguments)
        arguments.action(arguments)
    except Stopped as stop:
        logger.warning("%s %s", stop, stop.remedy)
        # After Ctrl-C, `train && evaluate` in a shell must not go on.
        return INTERRUPTED if stop.signal == "SIGINT" else 0
    except UserError as mistake:
        logger.debug("Where the error was raised:", exc_info=True)
        if rank == "0" or not isinstance(mistake, SharedMistake):
            _show_mistake(f"{mistake} [{mistake.code}]" if verbose else str(mistake))
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


def _expand_home(arguments: argparse.Namespace) -> None:
    """Expand `~` in every flag: the shell leaves it in `--data=~/x` and in quotes."""
    for name, value in vars(arguments).items():
        setattr(arguments, name, expand_home(value))


def _failure(error: Exception) -> int:
    """Show an unexpected error. To be called in its `except` clause."""
    if not _show_failure_of_plugin(error):
        logger.exception("Internal error; please report it with this traceback.")
    return FAILURE_OF_OURS


def _show_failure_of_plugin(error: Exception) -> bool:
    """Show an error that the code of a plugin raised; False if no plugin did."""
    from s3prl_mtl.registry.fault import plugin_at_fault

    found = plugin_at_fault(error)
    if found is None:
        return False
    plugin, frame = found
    logger.debug("Where the error was raised:", exc_info=True)
    _show_mistake(
        f"The code of package {plugin} failed: {error_summary(error)}. "
        f"Where: {frame.path}, line {frame.line}, in {frame.function}. "
        "Fix: Report it to the authors of that package. Run with --verbose for the traceback."
    )
    return True


def _show_mistake(text: str) -> None:
    show_message(f"error: {text}", "red")


class Command(Protocol):
    """A module of this package: one command."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


MODES = {
    "train": "Train one speech encoder on several tasks at once.",
    "evaluate": "Evaluate splits with the weights of a run.",
}
"""The commands of `run_flags`. Without a command, its flag -m chooses between them."""

COMMANDS = {
    **MODES,
    "study": "Run the paper's experiments, or show their progress.",
    "select": "Compare rules that choose one checkpoint for all tasks.",
    "demo": "Run a small study on a synthetic corpus, in ten minutes.",
    "predict": "Print the predictions of a run for audio files, as JSON lines.",
    "serve": "Serve the predictions of a run over HTTP, with a page to try it.",
    "results": "Show the results of a run, or compare those of several runs.",
    "folds": "Train a task once for each fold (er: five), and print the mean.",
    "report": "Write tables, figures and a page of a study or a run.",
    "affinity": "Measure how a step on one task changes other losses.",
    "merge": "Interpolate the encoder of a run with the pre-trained one.",
    "export": "Write the encoder of a run for another program.",
    "make-corpus": "Synthesise a small corpus in the folder layouts of nine tasks.",
    "manifest": "Write the corpus of a task as tables, like those of own data.",
    "cluster": "Label frames of audio with clusters, for HuBERT's pre-training.",
    "shard": "Copy corpora, their audio into tar archives (lhotse Shar).",
    "check-corpus": "Check the corpus of a task, and compare it with its publication.",
    "tasks": "List the installed tasks.",
    "upstreams": "List the installed upstreams.",
    "balancers": "List the methods that combine several tasks (--balancer).",
    "new-task": "Write the package of a new task.",
    "check-task": "Check a task against the contract (docs/plugins.md).",
}
"""A summary of each command. Its module, except for `MODES`, is `check_task` for `check-task`.

A module is imported when its command is chosen, and imports torch and others when it runs: help
and mistakes are shown at once.
"""


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; without words, show the help.

    Raises:
        UserError: an unknown command or flag, or a missing or malformed argument.
    """
    words = words or ["--help"]
    command = words[0]
    if command and not command.startswith("-") and command not in COMMANDS:
        otherwise = "Commands: " + ", ".join(COMMANDS) + "; without one, training."
        raise unknown_word("command", command, list(COMMANDS), otherwise)
    rest = words[1:] if command in COMMANDS else words
    return command_parser(command).parse_args(rest)


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command; for any other name, the parser of training and evaluation."""
    other = name in COMMANDS and name not in MODES
    module = name.replace("-", "_") if other else "run_flags"
    command = cast(Command, importlib.import_module(f"s3prl_mtl.cli.{module}"))
    parser = Parser(
        prog=f"s3prl-mtl {name}" if name in COMMANDS else "s3prl-mtl",
        description=COMMANDS.get(name, f"{MODES['train']} -m evaluate: evaluate it."),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    parser.set_defaults(action=command.run)
    if name in MODES:
        parser.set_defaults(mode=name)
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and debug messages")
    parser.add_argument("--version", action=ShowVersions)
    if name not in COMMANDS:
        lines = [f"  {command:14}{text}" for command, text in COMMANDS.items()]
        parser.epilog = "\n".join(["commands (without one: train):", *lines])
    return parser
