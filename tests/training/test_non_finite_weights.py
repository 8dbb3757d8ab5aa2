"""Weights that are not finite are refused where they are loaded; losses, in the dry run."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.tasks.best_checkpoint import update_best_score
from s3prl_mtl.tasks.metric import Metric
from s3prl_mtl.tracking.progress import total_loss
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.upstreams import load_upstream, write_fairseq_checkpoint
from s3prl_mtl.upstreams.hubert.tiny import make_tiny
from tests.distributed.test_updates import make_config
from tests.mistakes import user_error


@pytest.fixture
def config(tiny_corpus: Path, manifest_cache: Path) -> dict[str, Any]:
    return make_config(tiny_corpus, manifest_cache, "ks,asr")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["encoder.layers.1.fc1.weight", "layer_norm.bias"])
def test_an_encoder_of_fairseq_is_refused_with_file_and_parameter(
    name: str, value: float, tmp_path: Path
):
    model = make_tiny()
    weight = model.get_parameter(name)
    weight.data.view(-1)[3] = value
    path = tmp_path / "broken.pt"
    write_fairseq_checkpoint(path, model)
    with user_error("non-finite", where=r"broken\.pt") as caught:
        load_upstream("hubert", path)
    assert re.search(rf"\b1\b.*\b{weight.numel()}\b", caught.value.what)
    assert name in caught.value.what


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["encoder", "featurizer", "head"])
def test_a_run_is_refused_by_every_flag_that_starts_from_it(
    part: str, value: float, config: dict[str, Any], tmp_path: Path
):
    donor = MultiTaskRunner(config, tmp_path / "donor")
    module = {
        "encoder": donor.upstream.encoder.layers[0].fc1,
        "featurizer": donor.featurizer,
        "head": donor.tasks["ks"].expert.projector,
    }[part]
    next(module.parameters()).data.view(-1)[0] = value
    path = donor.save()
    with user_error("non-finite", where=path.name):
        MultiTaskRunner(config, tmp_path / "donor", resume=checkpoints.load(path))
    with user_error("non-finite", where=rf"{path.name}"):
        MultiTaskRunner({**config, "init_ckpt": str(tmp_path / "donor")}, tmp_path / "started")
    if part == "encoder":
        with user_error("non-finite", where=rf"--init_upstream_ckpt .*{path.name}"):
            started = {**config, "init_upstream_ckpt": str(path)}
            MultiTaskRunner(started, tmp_path / "started")


def test_a_state_of_the_optimizer_that_is_nan_is_refused(config: dict[str, Any], tmp_path: Path):
    runner = MultiTaskRunner(config, tmp_path)
    runner.train_step()
    state = next(iter(runner.training_step.optimizer.state.values()))
    state["exp_avg"].view(-1)[0] = math.nan
    path = runner.save()
    with user_error("non-finite", where=path.name) as caught:
        checkpoints.load(path)
    assert "exp_avg" in caught.value.what and caught.value.fix


def test_a_total_of_losses_that_are_all_nan_is_nan():
    assert math.isnan(total_loss({"ks": math.nan, "er": math.inf}))
    assert total_loss({"ks": math.nan, "er": 2.0}) == 2.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_head_of_s3prl_is_refused(value: float, config: dict[str, Any], tmp_path: Path):
    donor = MultiTaskRunner(config, tmp_path / "donor")
    for task in ("ks", "asr"):
        head = {k: v.clone() for k, v in donor.tasks[task].expert.state_dict().items()}
        if task == "asr":
            head["projector.bias"][0] = value
        (tmp_path / "heads" / task).mkdir(parents=True)
        file = tmp_path / "heads" / task / f"hubert_tiny_{task}.ckpt"
        torch.save({"Downstream": head}, file)
    with user_error("non-finite", where=r"hubert_tiny_asr\.ckpt") as caught:
        MultiTaskRunner({**config, "init_ckpt": str(tmp_path / "heads")}, tmp_path / "run")
    assert re.search(r"\bprojector\.bias\b.*\basr\b", caught.value.what)


@pytest.mark.parametrize("task", ["ks", "asr"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_the_dry_run_fails_on_a_loss_that_is_not_finite(
    split: str, task: str, config: dict[str, Any], tmp_path: Path
):
    runner = MultiTaskRunner(config, tmp_path)
    expert = runner.tasks[task].expert
    forward = expert.forward

    def broken(name: str, features: list[torch.Tensor], *rest: Any, **more: Any) -> torch.Tensor:
        if name.startswith(split):
            features = [feature * math.nan for feature in features]
        return forward(name, features, *rest, **more)

    expert.forward = broken
    with user_error("non-finite", where=f"{split}.* of {task}"):
        runner.try_out()


def test_a_task_whose_loss_is_nan_is_logged_as_nan(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    runner = MultiTaskRunner(config, tmp_path)
    runner.tasks["asr"].expert.model.linear.weight.data.fill_(math.nan)
    with caplog.at_level("INFO"):
        report = runner.train_step()
        runner.publisher.publish_training(None, report.losses)
    assert math.isnan(report.losses["asr"]) and report.losses["ks"] > 0
    reports = runner.evaluator.evaluate(runner.splits("dev_splits"))
    assert {r.task: r.save_names for r in reports} == {"ks": ["dev-best.ckpt"], "asr": []}


@pytest.mark.parametrize(
    ("loss", "improves"),
    [({}, True), ({"loss": 1.0}, True), ({"loss": math.inf}, True), ({"loss": math.nan}, False)],
)
def test_a_nan_loss_earns_no_best_checkpoint(loss: dict[str, float], improves: bool):
    best = torch.zeros(1)
    assert update_best_score(best, Metric("acc", "higher", ""), {"acc": 0.5, **loss}) == improves
    assert best.item() == (0.5 if improves else 0.0)
