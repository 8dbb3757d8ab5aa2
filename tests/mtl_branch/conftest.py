"""The branch's config, for the tiny corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mtl_branch.branch_config import write_small


@pytest.fixture(scope="session")
def multitask_yaml(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config with the keys of the branch's `multitask.yaml`, and the paths of the tiny corpus."""
    return write_small(tmp_path_factory.mktemp("branch") / "multitask.yaml", tiny_corpus)
