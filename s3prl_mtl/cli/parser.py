"""Parse command lines; report a mistake in one line, with the nearest flag or command."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from s3prl_mtl.errors import UserError, nearest

R = TypeVar("R")


class Parser(argparse.ArgumentParser):
    """A parser that raises a `UserError` for a mistake, instead of printing the usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # argparse takes `-0.5` as a value, but `-0.5,0.3` and `-0.5:0.3` as flags.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the words of a command line.

        Raises:
            UserError: an unknown flag, or words that do not form a command line.
        """
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        words[:end] = map(self._spelled, words[:end])
        for word in words[:end]:
            self._check_flag(word)
        return super().parse_args(words, namespace)

    def _spelled(self, word: str) -> str:
        """A long flag with the dashes and underscores of its name; any other word unchanged."""
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or flag in self._option_string_actions:
            return word
        names = {name.replace("_", "-"): name for name in self._option_string_actions}
        return names.get(flag.replace("_", "-"), flag) + equals + value

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{message[:1].upper()}{message[1:]}.",
            fix=f"See `{self.prog} --help`.",
            code="unknown-key" if message.startswith("unrecognized") else "invalid-value",
        )

    def _check_flag(self, word: str) -> None:
        """Report an unknown long flag before anything else that is wrong.

        Raises:
            UserError: no flag has this name or begins with it.
        """
        flag = word.partition("=")[0]
        # argparse takes a word with a blank as a value.
        if not flag.startswith("--") or " " in word:
            return
        known = [name for name in self._option_string_actions if name.startswith("--")]
        if not any(name.startswith(flag) for name in known):
            raise unknown_word("flag", flag, known, f"See `{self.prog} --help`.")


def add_data_roots(parser: argparse.ArgumentParser) -> None:
    """Add `--data` of a command for one task, which may be given several times."""
    parser.add_argument(
        "--data",
        metavar="DIR",
        action="append",
        help="folder of the corpora (or $SUPERB_DATA); of several, the first one with the corpus",
    )


def add_manifest(parser: argparse._ActionsContainer) -> None:
    """`--manifest`, read by :func:`s3prl_mtl.api.run_inputs.manifest_settings`."""
    parser.add_argument(
        "--manifest",
        metavar="TASK:SPLIT=FILE,...",
        action="append",
        help="own data: er:train=a.csv,dev=b.csv,test=c.csv; may be repeated",
    )


def add_rescan(parser: argparse._ActionsContainer) -> None:
    """Add `--rescan` of a command that reads corpora."""
    parser.add_argument(
        "--rescan",
        action="store_true",
        help="list the corpora even if their folders have not changed, and scan changed audio",
    )


def add_trust(parser: argparse._ActionsContainer) -> None:
    """Add `--trust_remote_code` of a command that builds encoders."""
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="execute modelling code of hf:NAME@COMMIT or of a folder: read it before",
    )


def add_encoder_settings(parser: argparse._ActionsContainer) -> None:
    """Add the flags for the features and the precision of the encoder."""
    parser.add_argument(
        "-s",
        "--upstream_feature_selection",
        metavar="FEATURES",
        choices=["hidden_states", "layer_results", "last_hidden_state"],
        help="hidden_states or layer_results (weighted sums of layers), or last_hidden_state",
    )
    parser.add_argument(
        "--precision", choices=["fp32", "tf32", "bf16"], help="number format of the encoder"
    )


def unknown_word(kind: str, word: str, known: Sequence[str], otherwise: str) -> UserError:
    """The error for an unknown flag or command.

    Args:
        kind: `flag` or `command`.
        word: as typed.
        known: the existing ones.
        otherwise: the remedy if none of them is similar.
    """
    hint = nearest(word, list(known), limit=1)
    fix = f"{hint[:1].upper()}{hint[1:]}" if hint.startswith("did you mean") else otherwise
    return UserError(f"Unknown {kind} {word!r}.", fix=fix, code="unknown-key")


def call(function: Callable[..., R], arguments: argparse.Namespace, **others: Any) -> R:
    """Call the function of a command with the values of the flags that are its arguments.

    Args:
        function: of `s3prl_mtl.api`.
        arguments: of the command line; `tests/api/test_commands.py` compares both.
        others: further arguments.
    """
    names = inspect.signature(function).parameters
    given = {name: value for name, value in vars(arguments).items() if name in names}
    return inspect.unwrap(function)(**{**given, **others})
