"""Every command has a function, and every flag an argument, or a reason why not."""

from __future__ import annotations

import argparse
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from s3prl_mtl import api
from s3prl_mtl.cli.main import COMMANDS, MODES, command_parser
from s3prl_mtl.cli.run_flags import _EVALUATION_FLAGS, _TRAINING_FLAGS

FUNCTIONS = {
    "new-task": "s3prl_mtl.authoring.new_task",
    "check-task": "s3prl_mtl.authoring.check_task",
    **{
        name: f"s3prl_mtl.api.{name.replace('-', '_')}"
        for name in COMMANDS
        if name.replace("-", "_") in api.__all__
    },
}
EVERYWHERE = {
    "help": "text",
    argparse.SUPPRESS: "--version, text",
    "verbose": "the log is that of the program",
    "action": "the function of the command",
}
FORM = "prints the returned value in another form"
TERMINAL_ONLY = {
    "train": {"mode": "two functions"},
    "evaluate": {"mode": "two functions"},
    "results": {"csv": FORM, "json": FORM},
    "affinity": {"csv": FORM, "json": FORM},
    "select": {"json": FORM},
    "study": {
        "status": "plan_study(...).states()",
        "print": "plan_study(...).script()",
        "slurm": "plan_study(...).write_slurm()",
        "lr_sweep": "sweep_learning_rates(...)",
        "rates": "of sweep_learning_rates",
    },
    "check-task": {"override": "its name is overrides"},
}
"""Flags without an argument, with the reason."""
PYTHON_ONLY = {
    "progress": "the terminal decides",
    "on_line": "the command prints the line",
    "on_start": "the command prints the address",
    "lines": "for tests of single clauses",
    "overrides": "the flag is --override",
}


def function_of(command: str) -> Callable[..., Any]:
    module, _, name = FUNCTIONS[command].rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def flags_of(command: str) -> set[str]:
    """Names of the values that a command takes."""
    named = {action.dest for action in command_parser(command)._actions}
    if command == "train":
        named -= set(_EVALUATION_FLAGS.values())
    if command == "evaluate":
        named -= set(_TRAINING_FLAGS.values())
    return named - set(EVERYWHERE)


def test_every_command_has_a_function() -> None:
    assert set(FUNCTIONS) == set(COMMANDS)
    assert set(MODES) <= set(FUNCTIONS)


@pytest.mark.parametrize("command", FUNCTIONS)
def test_every_flag_is_an_argument(command: str) -> None:
    arguments = set(inspect.signature(function_of(command)).parameters) - set(PYTHON_ONLY)
    listed = set(TERMINAL_ONLY.get(command, {}))
    assert flags_of(command) - listed == arguments
    assert not listed & arguments


@pytest.mark.parametrize("command", FUNCTIONS)
def test_defaults_are_those_of_the_command(command: str) -> None:
    flags = {action.dest: action for action in command_parser(command)._actions}
    for name, parameter in inspect.signature(function_of(command)).parameters.items():
        if name in PYTHON_ONLY or parameter.default is inspect.Parameter.empty:
            continue
        default = flags[name].default
        assert parameter.default == default or not (parameter.default or default), name


@pytest.mark.parametrize("name", api.__all__)
def test_arguments_are_typed_and_described(name: str) -> None:
    function = getattr(api, name)
    assert function.__doc__
    if inspect.isclass(function):
        return
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert "Returns:" in function.__doc__
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


def test_importing_the_functions_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from s3prl_mtl import api; "
        "print(*(n for n in ('torch', 'lhotse', 'numpy') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
