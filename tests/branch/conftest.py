"""The branch's config, for the tiny corpus."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

FIXTURE = Path(__file__).parents[1] / "fixtures" / "branch" / "multitask.yaml"


@pytest.fixture(scope="session")
def multitask_yaml(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config with the keys of the branch's `multitask.yaml`, and the paths of the tiny corpus."""
    path = tmp_path_factory.mktemp("branch") / "multitask.yaml"
    path.write_text(FIXTURE.read_text().replace("CORPORA", str(tiny_corpus)))
    return path


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """The command line sets up the log of its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
