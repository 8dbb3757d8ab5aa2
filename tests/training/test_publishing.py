"""What is written at a `log_step`."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from s3prl_mtl.tracking.recorder import Recorder, read_metrics
from s3prl_mtl.training import publishing
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.distributed.test_updates import make_config


def test_utterances_whose_ctc_loss_was_set_to_zero_are_logged_with_the_loss(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    runner = MultiTaskRunner(make_config(tiny_corpus, manifest_cache, "sf"), tmp_path)
    expert = runner.tasks["sf"].expert
    target = expert.target
    expert.target = lambda labels: target(labels).repeat(500)
    with Recorder(tmp_path) as recorder, caplog.at_level(logging.INFO):
        losses = [runner.train_step().losses for _ in range(2)][-1]
        runner.publisher.publish_training(recorder, losses)
    count = 2 * expert.datarc["train_batch_size"]
    values = {e["metric"]: e["value"] for e in read_metrics(tmp_path) if e["task"] == "sf"}
    assert values["loss"] == 0 and values["zeroed_utterances"] == count
    step, loss, _, zeroed = caplog.records[-1].args
    assert (step, loss) == (runner.step, 0)
    assert re.search(rf"\b{count}\b.*\bsf\b", zeroed)


def test_only_training_logs_the_weights_of_the_layers(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    runner = MultiTaskRunner(make_config(tiny_corpus, manifest_cache, "ks"), tmp_path)
    reports = runner.evaluator.evaluate([("ks", "test")])
    for sources, is_logged in (({}, True), ({"ks": "states-1.ckpt"}, False)):
        caplog.clear()
        with Recorder(tmp_path) as recorder, caplog.at_level(logging.INFO):
            runner.publisher.publish_evaluation(recorder, reports, keep_best=False, sources=sources)
        logged = [record.args for record in caplog.records if record.name == publishing.__name__]
        assert len(logged) == is_logged
        for step, weights in logged:
            assert step == runner.step
            assert len(weights.split()) == runner.upstream.num_hidden_states
