"""A dry run combines the tasks of its batch, and shows what a run would."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from s3prl_mtl.balancing import GradientBalancer, make_balancer
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.distributed.test_updates import make_config
from tests.mistakes import user_error
from tests.training_summaries import summaries


class Recording(GradientBalancer):
    """The sum; notes the tasks that it combines."""

    combined: ClassVar[list[str]] = []
    factor = 1.0

    def aggregate(self, gradients: Tensor, tasks: list[str]) -> Tensor:
        self.combined = list(tasks)
        return gradients.sum(dim=0) * self.factor


@pytest.fixture
def config(tiny_corpus: Path, manifest_cache: Path) -> dict[str, Any]:
    return make_config(tiny_corpus, manifest_cache, "ks,er", optimizer={"name": "SGD", "lr": 0.1})


def test_it_combines_the_tasks_and_shows_the_summary(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    balancer = Recording(config["downstream"])
    runner = MultiTaskRunner(config, tmp_path, balancer=balancer)
    with caplog.at_level("INFO"):
        runner.try_out()
    assert balancer.combined == ["ks", "er"]
    (summary,) = summaries(caplog)
    assert re.findall(r"\d+", summary[0]) == ["1", str(config["runner"]["total_steps"])]
    assert all(p.grad is None for p in runner.upstream.parameters())


def test_a_combination_that_fails_is_found(config: dict[str, Any], tmp_path: Path):
    balancer = Recording(config["downstream"])
    balancer.factor = math.nan
    with user_error("non-finite", where="gradient"):
        MultiTaskRunner(config, tmp_path, balancer=balancer).try_out()


@pytest.mark.parametrize("name", ["famo", "uncertainty", "gradvac"])
def test_the_state_of_the_balancer_stays_as_it_is(
    name: str, config: dict[str, Any], tmp_path: Path
):
    balancer = make_balancer({"name": name}, config["downstream"])
    before = str(balancer.state_dict())
    runner = MultiTaskRunner(config, tmp_path, balancer=balancer)
    runner.try_out()
    assert str(balancer.state_dict()) == before
    assert math.isfinite(sum(runner.train_step().losses.values()))
    assert torch.tensor([p.isfinite().all() for p in runner.upstream.parameters()]).all()


@pytest.mark.parametrize(
    ("layers", "said"), [("last_hidden_state", True), ("hidden_states", False)]
)
def test_a_balancer_without_common_parameters_is_named(
    layers: str, said: bool, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, caplog
):
    config = make_config(
        tiny_corpus,
        manifest_cache,
        "ks,er",
        **{"upstream.freeze": True, "upstream.feature_selection": layers},
        balancer={"name": "pcgrad"},
    )
    MultiTaskRunner(config, tmp_path).try_out()
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [(record.name, record.args) for record in warned] == [
        ("s3prl_mtl.training.runner", ("pcgrad",))
    ] * said
