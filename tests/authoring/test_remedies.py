"""Remedies work when they are followed to the letter."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from s3prl_mtl.authoring import new_task
from s3prl_mtl.tasks.contract import check_installed
from tests.mistakes import user_error

ROOT = Path(__file__).parents[2]


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


@pytest.mark.slow
def test_the_remedy_for_a_missing_config_installs_it(tmp_path: Path):
    new_task("words", tmp_path / "words")
    old, new = tmp_path / "words" / "words_task", tmp_path / "words" / "words_task" / "inner"
    new.mkdir()
    for name in ("__init__.py", "corpus.py", "config.yaml"):
        (old / name).rename(new / name)
    (old / "__init__.py").write_text("")
    (new / "__init__.py").write_text(
        (new / "__init__.py").read_text().replace("words_task.", "words_task.inner.")
    )
    project = tmp_path / "words" / "pyproject.toml"
    text = project.read_text().replace('"words_task:', '"words_task.inner:')
    project.write_text(text.replace('["words_task"]', '["words_task", "words_task.inner"]'))

    def check() -> str:
        site = tmp_path / "site"
        words = ["install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--upgrade"]
        pip = [sys.executable, "-m", "pip", *words, "--target", str(site), str(project.parent)]
        subprocess.run(pip, check=True, capture_output=True)
        done = subprocess.run(
            [sys.executable, "-m", "s3prl_mtl", "tasks", "--all"],
            env={**os.environ, "PYTHONPATH": f"{site}:{ROOT}", "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr

    broken = " ".join(check().split())
    (line,) = set(re.findall(r"`([^`]+ = [^`]+)`", broken))
    section = "tool.setuptools.package-data"
    assert f"[{section}]" in broken and "pyproject.toml" in broken
    project.write_text(project.read_text().replace(f"[{section}]\n", f"[{section}]\n{line}\n"))
    assert tomllib.loads(project.read_text())
    mended = " ".join(check().split())
    assert line not in mended and section not in mended and "words" in mended
