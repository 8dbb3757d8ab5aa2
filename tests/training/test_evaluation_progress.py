"""The terminal shows the batches of an evaluation."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from s3prl_mtl.tracking import console as terminal
from s3prl_mtl.tracking import progress
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.distributed.test_updates import make_config


def test_an_evaluation_shows_task_split_and_batches(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    console = Console(width=60, file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(progress, "MESSAGES", console)
    monkeypatch.setattr(terminal, "MESSAGES", console)
    runner = MultiTaskRunner(make_config(tiny_corpus, manifest_cache, "er"), tmp_path)
    runner.evaluator.evaluate([("er", "dev")])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    (total,) = {int(number) for number in re.findall(r"er dev .*/(\d+) batches", shown)}
    expert = runner.tasks["er"].expert
    assert total == len(expert.get_dataloader("dev"))
