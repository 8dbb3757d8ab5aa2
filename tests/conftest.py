"""Fixtures of the whole test suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_mtl.data.mini_corpus import make_corpus


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest mini corpus: all nine layouts under one folder. Do not write to it."""
    folder = tmp_path_factory.mktemp("corpus") / "tiny"
    make_corpus(folder, "tiny")
    return folder


@pytest.fixture(scope="session")
def manifest_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for manifests that the tests share, so that each split is scanned once."""
    return tmp_path_factory.mktemp("manifests")
