"""The commands in the table of docs/from-s3prl.md are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from s3prl_mtl.api.run_inputs import config_of, parse_splits
from s3prl_mtl.cli.main import command_parser
from s3prl_mtl.fileio.deferred_log import DeferredLog
from tests.docs.pages import PAGES, Block, Command
from tests.docs.training_command import runnable

PAGE = "docs/from-s3prl.md"


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table of a section, without its head."""
    section = PAGES[PAGE].read_text(encoding="utf-8").split(f"{heading}\n", 1)[1]
    section = section.split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


ROWS = rows("# Coming from s3prl")
COMMANDS = [
    span
    for theirs, ours in ROWS
    for span in re.findall(r"`([^`]+)`", theirs if ours.startswith("the same") else ours)
    if span.startswith(("s3prl-mtl ", "-"))
]


def test_the_table_is_parsed():
    assert len(ROWS) >= 12 and len(COMMANDS) >= 10 and all(len(row) == 2 for row in ROWS)


@pytest.mark.parametrize("span", COMMANDS)
def test_commands_in_the_table_are_valid(
    span: str, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUPERB_DATA", str(tiny_corpus))
    (tmp_path / "FILE").write_text("optimizer: {lr: 1.0e-4}\n")
    if span.endswith("-c"):
        span += " FILE"
    line = span if span.startswith("s3prl-mtl ") else f"s3prl-mtl train ... {span}"
    mode, *words = runnable(Command(Block(PAGE, 0, "", line), line), tiny_corpus)[1]
    arguments = command_parser(mode).parse_args(words)
    if arguments.mode == "evaluate":
        assert parse_splits(arguments.evaluate_split)
    else:
        assert config_of(arguments, None, DeferredLog())["runner"]["total_steps"] == 2


def test_the_flags_of_the_branch_exist_or_are_said_to_be_missing():
    options = command_parser("")._option_string_actions
    listed = [
        (flag, "missing" in here or "not needed" in here)
        for flags, here in rows("### Flags of the branch")
        for flag in re.findall(r"-{1,2}[a-z_]+", flags)
    ]
    assert len(listed) >= 25
    for flag, is_missing in listed:
        assert (flag in options) is not is_missing, flag
