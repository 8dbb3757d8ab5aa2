"""Contract and corpus of language identification."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lid_task.corpus import LanguageFolders

from s3prl_mtl.authoring import check_task


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    # espeak-ng runs in a separate process, because it keeps state between calls.
    words = [sys.executable, "-m", "lid_task.mini_corpus", str(folder / "languages")]
    subprocess.run(words, check=True)
    return folder


def test_the_task_satisfies_the_contract(corpora: Path, tmp_path: Path) -> None:
    findings = check_task("lid", data=corpora, overrides=f"cache_dir={tmp_path}")
    assert not [str(finding) for finding in findings if finding.holds is False]


def test_the_languages_are_the_folders(corpora: Path) -> None:
    corpus = LanguageFolders(root=corpora / "languages")
    assert corpus.label_space() == {"languages": ["de", "en", "es", "it", "pl"]}
    assert [len(corpus.utterances(split)) for split in corpus.splits] == [60, 30, 30]
    languages = {u.path.parent.name: u.labels["language"] for u in corpus.utterances("test")}
    assert all(folder == language for folder, language in languages.items())


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    (problem,) = LanguageFolders(root=tmp_path / "none").problems()
    assert str(tmp_path / "none") in problem and "`datarc.root`" in problem


def test_the_command_requires_a_folder() -> None:
    words = [sys.executable, "-m", "lid_task.mini_corpus"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m lid_task.mini_corpus")
