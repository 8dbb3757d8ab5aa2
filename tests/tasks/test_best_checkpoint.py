"""Selection of the best checkpoint by metrics of any direction and range."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl import ClassificationExpert, Metric, TaskExpert
from s3prl_mtl.authoring import check_task
from s3prl_mtl.cli.main import main
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tracking.recorder import Report
from tests.mistakes import user_error

# Regression of the pitch of computed tones, scored by the squared error.
SQUARED_ERROR = """
import math

import torch
from torch import nn
from torch.utils.data import DataLoader

from s3prl_mtl import Metric, TaskExpert


class Tones:
    def __len__(self):
        return 6

    def __getitem__(self, i):
        time = torch.arange(4000 + 160 * i) / 16000
        return torch.sin(2 * torch.pi * (300 + 100 * i) * time).numpy(), 3 + i


def collate(items):
    return [wav for wav, _ in items], [label for _, label in items]


class DownstreamExpert(TaskExpert):
    name = "tones"
    metrics = (Metric("mse", "lower", "error", range=(0.0, math.inf), percent=False),)

    @classmethod
    def problems(cls, downstream_expert):
        return []

    def read_labels(self):
        return {"unit": "100 Hz"}

    def build_head(self):
        self.linear = nn.Linear(self.upstream_dim, 1)

    def prepare(self, split):
        pass

    def utterances(self, split):
        return len(Tones())

    def get_dataloader(self, split, epoch=0):
        return DataLoader(Tones(), 2, shuffle=split == "train", collate_fn=collate)

    def forward(self, split, features, targets, *, records):
        pitches = self.linear(torch.stack([feature.mean(dim=0) for feature in features]))
        errors = (pitches.squeeze(1) - torch.tensor(targets, device=pitches.device)) ** 2
        records["error"] += errors.tolist()
        return errors.mean()

    def measure(self, split, records):
        return {"mse": sum(records["error"]) / len(records["error"])}
"""
CONFIG = "downstream_expert: {datarc: {}}\n"


class Measured(TaskExpert):
    """Reports the values in its records."""

    name = "measured"
    metrics = (Metric("score", "higher", "score"),)

    def read_labels(self) -> dict[str, Any]:
        return {}

    def build_head(self) -> None:
        pass

    def forward(self) -> None:
        raise NotImplementedError

    def measure(self, split: str, records: Any) -> dict[str, float]:
        return {self.selecting_metric.name: records["value"][0]}


def kept(expert_class: type[TaskExpert], values: list[float], folder: Path) -> list[bool]:
    """Whether each of several consecutive values earns a checkpoint."""
    expert = expert_class(8, 320, {}, folder)
    names = [
        expert.log_records("dev", {"value": [value]}, Report("measured", "dev"), global_step=1)
        for value in values
    ]
    assert {name for found in names for name in found} <= {"dev-best.ckpt"}
    return [bool(found) for found in names]


@pytest.mark.parametrize(
    ("better", "ends", "values", "expected"),
    [
        ("lower", (0.0, math.inf), [1e6, 2e6, 5.0, 5.0], [True, False, True, False]),
        ("lower", (0.0, 1.0), [1.0, 0.5], [True, True]),
        ("lower", (-math.inf, 0.0), [-1.0, -2.0], [True, True]),
        ("higher", (0.0, 1.0), [0.0, 0.1, 0.1], [False, True, False]),
        ("higher", (-math.inf, math.inf), [-30.0, -40.0, -2.0], [True, False, True]),
        ("higher", (-1.0, 1.0), [-1.0, -0.5], [False, True]),
        ("higher", (1.0, 5.0), [1.5, 3.0], [True, True]),
        (
            "lower",
            (0.0, math.inf),
            [math.nan, math.inf, 3.0, math.nan],
            [False, False, True, False],
        ),
        ("higher", (0.0, math.inf), [math.inf, math.nan, 3.0], [False, False, True]),
    ],
)
def test_an_improved_finite_value_saves_a_checkpoint(
    better: str,
    ends: tuple[float, float],
    values: list[float],
    expected: list[bool],
    tmp_path: Path,
):
    metric = Metric("score", better, "score", range=ends, percent=False)
    expert_class = type("Own", (Measured,), {"metrics": (metric,)})
    assert kept(expert_class, values, tmp_path) == expected


def test_a_task_may_set_its_worst_score(tmp_path: Path):
    metric = Metric("score", "lower", "score")
    choosy = type("Choosy", (Measured,), {"metrics": (metric,), "worst_score": 0.5})
    assert kept(choosy, [0.7, 0.4], tmp_path) == [False, True]


def test_an_object_with_the_attributes_of_a_metric_selects_too(tmp_path: Path):
    class Declared:
        name, better, title = "score", "lower", "score"

    own = type("Own", (Measured,), {"metrics": (Declared(),)})
    assert kept(own, [0.7, 0.9, 0.4], tmp_path) == [True, False, True]


def test_a_run_keeps_the_best_checkpoint_of_a_squared_error(
    install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    install(SQUARED_ERROR, CONFIG)
    settings = "scheduler=null,,runner.eval_step=1,,runner.log_step=1,,runner.save_step=2"
    flags = ["-u", "hubert_tiny", "-d", "tones", "--steps", "2", "--device", "cpu"]
    assert main([*flags, "-p", str(tmp_path / "run"), "-o", settings]) == 0, capsys.readouterr().err
    saved = torch.load(tmp_path / "run" / "tones" / "dev-best.ckpt", weights_only=False)
    score = saved["Tasks"]["tones"]["Downstream"]["best_score"].item()
    assert 0 < score < math.inf


def test_the_first_evaluation_saves_a_checkpoint(install):
    install(SQUARED_ERROR, CONFIG)
    (_, finding) = check_task("tones", lines=[13])
    assert finding.holds is True and "dev-best.ckpt" in finding.why


def test_a_first_evaluation_without_a_checkpoint_violates_the_contract(install):
    install(
        SQUARED_ERROR.replace('    name = "tones"', '    name, worst_score = "tones", 0.0'), CONFIG
    )
    (_, finding) = check_task("tones", lines=[13])
    assert finding.holds is False
    assert re.search(r"dev\b.*\bmse\b.*`worst_score`.*\b0\b", finding.why), finding.why


class NoClass(ClassificationExpert):
    name = "none"


@pytest.mark.parametrize(
    ("attributes", "attribute", "value", "fix"),
    [
        ({"metrics": ("acc",)}, "metrics", "'acc'", None),
        ({"metrics": Metric("a", "higher", "a")}, "metrics", "Metric(name='a'", None),
        ({"metrics": ()}, "metrics", "metrics", r"Metric\("),
        ({"metrics": (Metric("a", "up", "a"),)}, "metrics", "'up'", None),
        (
            {"metrics": (Metric("a", "lower", "a", range=(1.0, 0.0)),)},
            "metrics",
            "(1.0, 0.0)",
            None,
        ),
        ({"selected_by": "scroe"}, "selected_by", "'scroe'", "'score'"),
        ({"worst_score": "bad"}, "worst_score", "'bad'", None),
        ({"name": None}, "name", "None", None),
    ],
)
def test_a_wrong_declaration_is_named_with_its_class(
    attributes: dict[str, Any], attribute: str, value: str, fix: str | None, tmp_path: Path
):
    expert_class = type("Wrong", (Measured,), {**attributes, "__module__": __name__})
    where = re.escape(f"`{attribute}` of {__name__}.Wrong")
    with user_error("expert-invalid", where, fix) as error:
        expert_class(8, 320, {}, tmp_path)
    assert value in error.value.what


def test_an_expert_without_corpus_type_is_named():
    with user_error("expert-invalid", where=r"`corpus_type` of .*NoClass", fix="corpus_type = "):
        NoClass.problems({})


def test_a_path_that_is_not_set_without_a_config_file_names_the_file():
    corpus_type = load_task("ks").corpus_type
    expert_class = type("Bare", (NoClass,), {"corpus_type": corpus_type, "__module__": __name__})
    folder = re.escape(str(Path(__file__).parent))
    with user_error("corpus-unset", where=rf"{folder}/config\.yaml", fix="package-data") as error:
        expert_class.problems({})
    assert "--data" not in str(error.value)
