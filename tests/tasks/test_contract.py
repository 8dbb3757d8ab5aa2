"""The class of an expert is checked before it is used."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from s3prl_mtl.tasks.contract import check_installed
from tests.mistakes import user_error

EXPERT = """
from s3prl_mtl import ClassificationExpert


class Expert(ClassificationExpert):
    name, corpus_type = "tones", dict
"""


@pytest.mark.parametrize(
    ("file", "module", "package"),
    [
        ("outer_task/__init__.py", "outer_task", "outer_task"),
        ("outer_task/experts.py", "outer_task.experts", "outer_task"),
        ("outer_task/inner/experts.py", "outer_task.inner.experts", "outer_task.inner"),
    ],
)
def test_the_remedy_for_a_missing_config_names_the_package_of_the_module(
    file: str, module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    for folder in {path.parent, tmp_path / "outer_task"}:
        (folder / "__init__.py").touch()
    path.write_text(EXPERT)
    monkeypatch.syspath_prepend(str(tmp_path))
    expert = importlib.import_module(module).Expert
    line = re.escape(f'`"{package}" = ["*.yaml"]`')
    try:
        with user_error("expert-invalid", where=str(path.parent / "config.yaml"), fix=line):
            check_installed("tones", expert)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "outer_task"]:
            del sys.modules[name]
