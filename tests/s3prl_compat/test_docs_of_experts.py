"""The table in docs/s3prl-experts.md agrees with the installed s3prl."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from s3prl_mtl.s3prl_compat.folders import installed_experts, installed_root
from tests.s3prl_compat.corpora import BUILDERS

TEXT = (Path(__file__).parents[2] / "docs" / "s3prl-experts.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("## Which experts of s3prl")[2].partition("\n## ")[0]

MODULES = {
    "dtw-python": "dtw",
    "setuptools": "pkg_resources",
}
"""Modules with another name than their packages."""

IMPORT_ALL = """
import importlib.util, json, sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from s3prl_mtl.errors import UserError
from s3prl_mtl.s3prl_compat.loading import load_expert


class Empty(ModuleType):
    # Every attribute is an empty class.
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Lender:
    # Finds the packages in `lent`, which are not installed.
    lent = set()

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in self.lent else None

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


def imported(folder):
    before = set(sys.modules)
    try:
        load_expert(folder)
        return "yes"
    except UserError as error:
        return getattr(error.__cause__, "name", "") if error.code == "missing-package" else ""
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("s3prl.downstream.") or name.partition(".")[0] in Lender.lent:
                del sys.modules[name]


lender = Lender()
sys.meta_path.append(lender)
found = {}
for folder, modules in json.loads(sys.argv[1]).items():
    Lender.lent = set()
    alone = imported(folder)
    Lender.lent = {name for name in modules if importlib.util.find_spec(name) is None}
    found[folder] = [alone, imported(folder)]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    needs: list[str]
    imports: str
    trains: str
    remarks: str

    @property
    def modules(self) -> list[str]:
        """The modules of the packages that the expert needs."""
        return [MODULES.get(package, package) for package in self.needs]


def _rows() -> dict[str, Row]:
    rows = {}
    for line in SECTION.splitlines():
        cells = [cell.strip() for cell in line.strip().removeprefix("|").split("|")]
        if not line.startswith("| `"):
            continue
        folders, needs, imports, _, trains, remarks, *_ = cells
        # "pandas below 3", "`setuptools<81`": versions are for pip.
        packages = [re.split(r"[ <]", p.strip(" `"))[0] for p in needs.split(",") if p]
        for folder in re.findall(r"`([^`]+)`", folders):
            rows[folder] = Row(packages, imports, trains, remarks)
    return rows


ROWS = _rows()


@pytest.fixture(scope="module")
def imports() -> dict[str, tuple[str, str]]:
    """Import each expert without and with its packages: "yes", or the module that is missing."""
    modules = {folder: row.modules for folder, row in ROWS.items()}
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(modules)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


def test_every_expert_of_the_installed_s3prl_has_a_row() -> None:
    assert ROWS.keys() == installed_experts().keys()


def test_the_last_paragraph_lists_the_folders_without_an_expert() -> None:
    listed = set(re.findall(r"`([^`]+)`", SECTION.strip().rpartition("\n\n")[2]))
    root = installed_root()
    assert root is not None
    folders = {path.parent.name for path in root.glob("*/*.py")}
    assert listed == {name for name in folders if not (root / name / "expert.py").is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("folder", [folder for folder, row in ROWS.items() if row.imports == "yes"])
def test_an_expert_imports_with_the_packages_in_the_table(
    folder: str, imports: dict[str, tuple[str, str]]
) -> None:
    alone, lent = imports[folder]
    assert lent == "yes"
    if alone != "yes":
        assert alone.partition(".")[0] in ROWS[folder].modules


@pytest.mark.slow
@pytest.mark.parametrize("folder", [folder for folder, row in ROWS.items() if row.imports != "yes"])
def test_an_expert_that_does_not_import_lacks_a_package_in_the_table(
    folder: str, imports: dict[str, tuple[str, str]]
) -> None:
    alone, _ = imports[folder]
    assert alone.partition(".")[0] in ROWS[folder].modules


def test_an_expert_that_trains_is_tested_or_marked_as_tried_by_hand() -> None:
    by_hand = {folder for folder, row in ROWS.items() if "by hand" in row.remarks}
    trained = {folder for folder, row in ROWS.items() if row.trains in ("yes", "on a GPU")}
    untried = {folder for folder, row in ROWS.items() if "not tried" in row.remarks}
    assert trained - untried - by_hand == BUILDERS.keys()
