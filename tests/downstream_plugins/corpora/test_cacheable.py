"""The built-in corpora may be cached: they read by the functions of `s3prl_mtl.data` only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.data.folders import record_reads
from s3prl_mtl.registry.plugins import load_task

TASKS = ["asr", "pr", "sf", "ks", "ic", "sid", "er", "sv", "sd"]
_OPENED: list[set[str]] = []
"""The set to add to, or nothing: an audit hook stays until the process ends."""


def _add_opened(event: str, arguments: tuple[Any, ...]) -> None:
    reads = event in ("open", "os.listdir", "os.scandir")
    if _OPENED and reads and isinstance(arguments[0], str | os.PathLike):
        _OPENED[0].add(os.fspath(arguments[0]))


@pytest.fixture(scope="module")
def audit_hook() -> None:
    sys.addaudithook(_add_opened)


@pytest.fixture
def opened(audit_hook: None) -> Iterator[set[str]]:
    """Every file that Python opens, and every folder that it lists."""
    _OPENED.append(set())
    yield _OPENED[0]
    _OPENED.clear()


@pytest.mark.parametrize("task", TASKS)
def test_all_reads_are_recorded(task: str, tiny_corpus: Path, opened: set[str]) -> None:
    config = resolve(build_config([], {"downstream": [task], "data": str(tiny_corpus)}, None))
    corpus = load_task(task).make_corpus(config.tasks[task].downstream_expert["datarc"])
    assert corpus.cacheable
    with record_reads() as reads:
        corpus.label_space()
        for split in corpus.splits[:3]:
            corpus.utterances(split)
            corpus.findings(split)
        corpus.notes()
    below = {path for path in opened if path.startswith(str(tiny_corpus))}
    assert below
    assert below <= reads.keys()
