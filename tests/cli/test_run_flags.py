"""The flags of training and evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_mtl import api, cli
from s3prl_mtl.cli import run_flags
from s3prl_mtl.cli.main import command_parser
from s3prl_mtl.config.overrides import ARGUMENT_KEYS
from s3prl_mtl.config.schema import CHOICES
from tests.mistakes import user_error

FLAGS = sorted(vars(command_parser("").parse_args([])))
SOURCE = "".join(
    path.read_text() for room in (api, cli) for path in Path(room.__path__[0]).glob("*.py")
)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_is_a_setting_or_is_read(flag: str) -> None:
    assert flag in ARGUMENT_KEYS or f"arguments.{flag}" in SOURCE or flag in ("backend", "timeout")


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("upstream_feature_selection", "upstream.feature_selection"),
        ("precision", "precision"),
        ("parallel", "distributed.parallel"),
    ],
)
def test_choices_are_those_of_the_setting(flag: str, key: str) -> None:
    (action,) = (a for a in command_parser("")._actions if a.dest == flag)
    assert ARGUMENT_KEYS[flag] == key
    assert tuple(action.choices) == CHOICES[key]


@pytest.mark.parametrize("words", [["--best"], ["-t", "ks:test"]])
def test_flags_of_an_evaluation_are_refused_in_training(words: list[str]):
    arguments = command_parser("").parse_args(["-u", "hubert_tiny", "-d", "ks", *words])
    with user_error("conflicting-options", where=words[0]):
        run_flags.run(arguments)


@pytest.mark.parametrize(
    "words",
    [
        ["-a"],
        ["-i", "heads"],
        ["-n", "first"],
        ["--steps", "5"],
        ["--freeze_upstream"],
        ["--unfreeze_after", "5"],
        ["--parallel", "task"],
        ["--dry-run"],
    ],
)
def test_flags_of_training_are_refused_in_an_evaluation(words: list[str]):
    arguments = command_parser("").parse_args(["-m", "evaluate", "-e", "run", *words])
    with user_error("conflicting-options", where=words[0]):
        run_flags.run(arguments)


@pytest.mark.parametrize(
    ("words", "where"),
    [(["-n", "a", "-p", "b"], "-n and -p"), (["-a", "-e", "run", "-p", "b"], "-a and -e")],
)
def test_flags_that_exclude_each_other_are_refused(words: list[str], where: str):
    arguments = command_parser("").parse_args(["-u", "hubert_tiny", "-d", "ks", *words])
    with user_error("conflicting-options", where=where):
        run_flags.run(arguments)
