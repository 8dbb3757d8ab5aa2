"""docs/upstreams.md agrees with the installed s3prl."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from s3prl_mtl.cli.main import command_parser
from s3prl_mtl.upstreams.zoo.s3prl_hub import zoo_names
from tests.upstreams.test_zoo import WITH_SETTINGS, WITHOUT_DOWNLOAD
from tests.upstreams.test_zoo_transformers import CLASSES
from tests.upstreams.zoo_checkpoints import DOWNLOADED, MAKERS

TEXT = (Path(__file__).parents[2] / "docs" / "upstreams.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)
ROWS = {
    cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
    for line in TEXT.splitlines()
    if line.startswith("| `") and len(cells := line.strip("| ").split(" | ")) >= 3
}

IMPORT_ALL = """
import json, sys
from s3prl_mtl.upstreams.zoo.s3prl_hub import import_hub
imported = {}
for module in json.loads(sys.argv[1]):
    try:
        import_hub(module)
        imported[module] = "yes"
    except Exception:
        imported[module] = "no"
assert "s3prl.hub" not in sys.modules
print(json.dumps(imported))
"""


@pytest.mark.slow
def test_the_table_lists_every_module_and_whether_it_imports() -> None:
    modules = sorted(set(zoo_names().values()))
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(modules)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    imported = json.loads(answer.stdout.splitlines()[-1])
    assert {module: row[0] for module, row in ROWS.items()} == imported


def test_names_marked_as_compared_are_tested() -> None:
    modules = zoo_names()
    tested: dict[str, set[str]] = {}
    for name in [*MAKERS, *WITHOUT_DOWNLOAD, *WITH_SETTINGS, *DOWNLOADED, *CLASSES]:
        tested.setdefault(modules[name], set()).add(name)
    compared = {module: _names(row[1]) for module, row in ROWS.items() if "compared" in row[1]}
    assert compared == tested


def test_other_rows_are_marked_as_tried_by_hand_or_have_a_reason() -> None:
    for module, row in ROWS.items():
        if "compared" not in row[1]:
            assert row[1].startswith("by hand: ") or (row[1] == "no" and row[2]), module


def _names(cell: str) -> set[str]:
    """The upstreams that a cell marks as compared, without their flags."""
    quoted = re.findall(r"`([^`]+)`", cell.partition("by hand")[0])
    return {words.split()[0] for words in quoted}


@pytest.mark.parametrize(
    "line",
    [
        line
        for _, block in BLOCKS
        for line in block.splitlines()
        if line.startswith("s3prl-mtl train ")
    ],
)
def test_every_command_is_valid(line: str) -> None:
    command_parser("train").parse_args(shlex.split(line)[2:])


def test_the_example_in_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    block = next(text for language, text in BLOCKS if language == "python")
    exec(compile(block, "docs/upstreams.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[0] == "[49, 74]"
