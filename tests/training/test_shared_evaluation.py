"""Splits with the same audio are encoded once, with the same results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder
from tests.distributed.test_updates import make_config


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Utterances of each pass of the encoder."""
    passes: list[int] = []
    encode = SharedEncoder.hidden_states

    def counted(encoder: SharedEncoder, wavs: Sequence[Any], masks: Sequence[Any] = ()) -> Any:
        passes.append(len(wavs))
        return encode(encoder, wavs, masks)

    monkeypatch.setattr(SharedEncoder, "hidden_states", counted)
    return passes


@pytest.fixture
def runner(tiny_corpus: Path, manifest_cache: Path, tmp_path: Path) -> MultiTaskRunner:
    return MultiTaskRunner(make_config(tiny_corpus, manifest_cache, "asr,er,pr"), tmp_path)


def test_asr_and_pr_are_encoded_once_with_the_results_of_each_alone(
    runner: MultiTaskRunner, encoded: list[int]
) -> None:
    splits = [("asr", "dev-clean"), ("er", "dev"), ("pr", "dev")]
    alone = [report for split in splits for report in runner.evaluator.evaluate([split])]
    seen = sum(encoded)
    encoded.clear()
    together = runner.evaluator.evaluate(splits)
    assert [report.values for report in together] == [report.values for report in alone]
    assert sum(encoded) == seen - runner.tasks["pr"].expert.utterances("dev")


def test_other_batches_are_encoded_apart(runner: MultiTaskRunner, encoded: list[int]) -> None:
    """Files may change, or be read differently, after their names were compared."""
    splits = [("asr", "dev-clean"), ("pr", "dev")]
    expert = runner.tasks["pr"].expert
    expert.condition = lambda waveform: 0.5 * waveform
    alone = [report for split in splits for report in runner.evaluator.evaluate([split])]
    seen = sum(encoded)
    encoded.clear()
    together = runner.evaluator.evaluate(splits)
    assert [report.values for report in together] == [report.values for report in alone]
    assert sum(encoded) == seen


def test_the_first_batches_of_both_are_evaluated(
    runner: MultiTaskRunner, encoded: list[int]
) -> None:
    runner.evaluator.batches = 2
    for task in runner.tasks.values():
        task.expert.datarc["eval_batch_size"] = 2
    asr, pr = runner.evaluator.evaluate([("asr", "dev-clean"), ("pr", "dev")])
    assert len(encoded) == 2
    assert asr.problem is None and pr.problem is None


def test_the_splits_of_a_task_stay_in_order_each_in_a_group(runner: MultiTaskRunner) -> None:
    for name, audio in {"asr": "xyx", "er": "yx?", "pr": "xy?"}.items():
        by_split = dict(zip(("a", "b", "c"), audio, strict=True))
        runner.tasks[name].expert.audio_digest = by_split.__getitem__
    splits = [("asr", s) for s in "abc"] + [("er", "a"), ("er", "b"), ("pr", "a"), ("pr", "b")]
    groups = runner.evaluator._by_audio(splits)
    assert [[(entry.task.name, entry.split) for entry in group] for group in groups] == [
        [("asr", "a"), ("pr", "a")],
        [("asr", "b"), ("er", "a"), ("pr", "b")],
        [("asr", "c"), ("er", "b")],
    ]
