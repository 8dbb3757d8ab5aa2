"""Remedies work when they are followed to the letter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from s3prl_mtl.authoring import new_task

ROOT = Path(__file__).parents[2]


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
