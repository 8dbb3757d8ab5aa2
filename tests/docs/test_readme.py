"""What the README tells people to type is what the program understands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from s3prl_mtl.cli.main import command_parser, run_parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
LINES = [line.partition("  #")[0] for _, block in BLOCKS for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("python run_mtl.py")])
def test_every_training_command_can_be_typed(line: str):
    words = shlex.split(line.replace("...", "-u hubert -d ks"))[2:]
    arguments = run_parser().parse_args(words)
    for file in arguments.config:
        assert (ROOT / file).is_file()


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("python -m s3prl_mtl")])
def test_every_other_command_can_be_typed(line: str):
    command, *words = shlex.split(line)[3:]
    command_parser(command).parse_args(words)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("bash ")])
def test_every_script_is_there(line: str):
    assert (ROOT / shlex.split(line)[1]).is_file()


def test_the_example_in_python_runs(tmp_path: Path):
    (block,) = [text for language, text in BLOCKS if language == "python"]
    done = subprocess.run(
        [sys.executable, "-c", block + "\nprint(len(features), features[0].shape[1])"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "96"]


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link
