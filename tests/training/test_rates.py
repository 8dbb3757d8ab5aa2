"""Learning rates by part, frozen layers, and an encoder that is frozen in the first steps."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.compatibility import check_resume
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.config import Config, build_config
from s3prl_mtl.tracking.recorder import read_metrics
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.upstreams import Hubert
from s3prl_mtl.upstreams.hubert.tiny import TINY_WEIGHTS
from tests.comparison import assert_same
from tests.mistakes import user_error
from tests.training_summaries import summaries

SMALL_HEADS = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"
GROUPS = {
    "encoder": {"lr": 1e-4, "layer_decay": 0.5, "weight_decay": 0.25},
    "featurizer": {"lr": 3e-3},
    "heads": {"lr": 1e-3, "weight_decay": 0.125},
    "er": {"lr": 2e-3},
}


@pytest.fixture
def make_config(tiny_corpus: Path, manifest_cache: Path):
    def _make_config(tasks: str = "ks", **flags: object) -> Config:
        settings = {
            "downstream": tasks.split(","),
            "data": str(tiny_corpus),
            "cache_dir": str(manifest_cache),
            "upstream.name": "hubert_tiny",
            "device": "cpu",
            "runner.total_steps": 4,
            "runner.save_step": 1,
            "runner.log_step": 1,
            "runner.eval_step": 1000,
            "runner.test_last": False,
            "runner.max_keep": 9,
        }
        dotted = {key.replace("__", "."): value for key, value in flags.items()}
        return build_config(files=[SMALL_HEADS], flags=settings | dotted)

    return _make_config


def expected(name: str) -> tuple[float, float]:
    """Rate and weight decay of a parameter of a run of ks and er, from the definition."""
    layer = re.match(r"Upstream/encoder\.layers\.(\d)", name)
    if layer:  # layers are counted from 1; the tiny encoder has 3
        return 1e-4 * 0.5 ** (3 - (int(layer[1]) + 1)), 0.25
    if name.startswith("Upstream/feature_extractor."):
        return 1e-4 * 0.5**3, 0.25
    if re.match(r"Upstream/(layer_norm|post_extract_proj|encoder\.)", name):
        return 1e-4 * 0.5**2, 0.25
    if name.startswith("Upstream/"):
        return 1e-4, 0.25
    if name.startswith("Featurizer/"):
        return 3e-3, 0.01  # AdamW's own weight decay
    return (2e-3 if name.startswith("Tasks/er/") else 1e-3), 0.125


def test_every_parameter_has_the_rate_and_weight_decay_of_its_part(make_config, tmp_path: Path):
    config = make_config("ks,er", optimizer__groups=GROUPS, scheduler=None)
    runner = MultiTaskRunner(config, tmp_path)
    step = runner.training_step
    names = {p: name for name, p in runner.run.trained_parameters(step.balancer).items()}
    found = {
        names[p]: (group["lr"], group["weight_decay"])
        for group in step.optimizer.param_groups
        for p in group["params"]
    }
    assert found == {name: pytest.approx(expected(name)) for name in names.values()}


def test_without_groups_there_is_one_group_without_a_part(make_config, tmp_path: Path):
    runner = MultiTaskRunner(make_config(), tmp_path)
    (group,) = runner.training_step.optimizer.param_groups
    parameters = runner.run.trained_parameters(runner.training_step.balancer)
    assert list(map(id, group["params"])) == list(map(id, parameters.values()))
    assert set(group) == set(
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]).param_groups[0]
    ) | {"initial_lr"}


def test_the_rate_of_each_part_is_logged_and_in_the_summary(
    make_config, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = make_config("ks,er", optimizer__groups=GROUPS, scheduler=None, runner__total_steps=1)
    with caplog.at_level("INFO"):
        MultiTaskRunner(config, tmp_path).train()
    logged = {e["metric"]: e["value"] for e in read_metrics(tmp_path) if "lr" in e["metric"]}
    assert logged == {"lr_encoder": 1e-4, "lr_featurizer": 3e-3, "lr_ks": 1e-3, "lr_er": 2e-3}
    (summary,) = map("\n".join, summaries(caplog))
    for part in ("encoder 0.0001 (layer_decay 0.5", "featurizer 0.003", "ks 0.001", "er 0.002"):
        assert part in summary


def test_a_run_with_groups_resumes_bit_for_bit_before_at_and_after_the_unfreezing(
    make_config, tmp_path: Path
):
    groups = {**GROUPS, "encoder": {**GROUPS["encoder"], "num_warmup_steps": 2}}
    config = make_config(optimizer__groups=groups, runner__unfreeze_after=2)
    first = MultiTaskRunner(config, tmp_path / "whole")
    initial = {name: value.clone() for name, value in first.upstream.state_dict().items()}
    first.train()
    saved = {n: checkpoints.load(tmp_path / "whole" / f"states-{n}.ckpt") for n in (1, 2, 3, 4)}

    def encoder_states(step: int) -> set[str]:
        return {name for name in saved[step].training.optimizer.state if "Upstream/" in name}

    assert_same(first.encoder.upstream.state_dict().keys(), initial.keys())
    assert not encoder_states(2) and encoder_states(3)
    # Its own warm-up of 2 steps begins at the unfreezing, with the rate 0.
    for step in (2, 3):
        for name, value in initial.items():
            assert torch.equal(saved[step].upstream[f"model.{name}"], value), (step, name)
    state = saved[4].training.optimizer.state["Upstream/encoder.layers.0.fc1.weight"]
    assert int(state["step"]) == 2
    moved = [n for n in initial if not torch.equal(saved[4].upstream[f"model.{n}"], initial[n])]
    assert "encoder.layers.0.fc1.weight" in moved
    assert not torch.equal(saved[1].featurizer["weights"], saved[2].featurizer["weights"])
    for start in (1, 2, 3):
        folder = tmp_path / f"from-{start}"
        MultiTaskRunner(config, folder, resume=saved[start]).train()
        assert_same(saved[4], checkpoints.load(folder / "states-4.ckpt"))


def test_a_checkpoint_of_an_earlier_version_resumes_bit_for_bit(make_config, tmp_path: Path):
    config = make_config(runner__total_steps=2)
    MultiTaskRunner(config, tmp_path / "whole").train()
    content = checkpoints.load(tmp_path / "whole" / "states-1.ckpt").to_dict()
    assert set(content["Optimizer"]) == {"Settings", "State"}
    older = copy.deepcopy(content)
    del older["Config"]["upstream"]["freeze_layers"]
    del older["Config"]["runner"]["unfreeze_after"]
    saved = RunCheckpoint.from_dict(older, "a file")
    assert saved.upstream_config.freeze_layers is None
    resumed = build_config(base=saved.config)
    check_resume(saved, resumed, None)
    MultiTaskRunner(resumed, tmp_path / "resumed", resume=saved).train()
    whole, again = (
        checkpoints.load(tmp_path / run / "states-2.ckpt") for run in ("whole", "resumed")
    )
    assert_same(whole.training, again.training)
    assert_same(whole.upstream, again.upstream)


def test_a_run_cannot_resume_with_other_parts(make_config, tmp_path: Path):
    saved = MultiTaskRunner(make_config(), tmp_path).state()
    changes = {
        "optimizer.groups": {"heads": {"lr": 1e-3}},
        "upstream.freeze_layers": 1,
        "runner.unfreeze_after": 1,
    }
    for key, value in changes.items():
        with user_error("resume-conflict", where=re.escape(key)) as caught:
            check_resume(saved, make_config(**{key: value}), None)
        assert "None" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 2])
def test_frozen_layers_stay_and_the_others_move(make_config, tmp_path: Path, count: int):
    config = make_config(upstream__freeze_layers=count, scheduler=None, runner__total_steps=1)
    runner = MultiTaskRunner(config, tmp_path)
    before = {name: value.clone() for name, value in runner.upstream.state_dict().items()}
    wavs = [0.1 * torch.randn(4000)]
    with torch.no_grad():
        states = runner.upstream.eval()(wavs).layers
    runner.train()
    after = runner.upstream.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith(f"encoder.layers.{count}.") for name in moved)
    frozen = ("feature_extractor.", *(f"encoder.layers.{n}." for n in range(count)))
    assert not [name for name in moved if name.startswith(frozen)]
    assert any(name.startswith("encoder.pos_conv.") for name in moved) == (count == 0)
    with torch.no_grad():
        now = runner.upstream.eval()(wavs).layers
    same = [torch.equal(*pair) for pair in zip(states, now, strict=True)]
    assert same == ([True] * (count + 1) + [False] * (3 - count) if count else [False] * 4)


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        ({"upstream__freeze_layers": 0}, "upstream.freeze_layers"),
        ({"optimizer__groups": {"encoder": {"layer_decay": 0.9}}}, "encoder.layer_decay"),
    ],
)
def test_an_upstream_that_does_not_tell_its_layers_is_refused(
    make_config, tmp_path: Path, monkeypatch, flags: dict, where: str
):
    monkeypatch.setattr(Hubert, "parameter_layers", lambda self: None)
    with user_error("not-supported", where=where):
        MultiTaskRunner(make_config(**flags), tmp_path)


def test_more_frozen_layers_than_there_are_is_an_error(make_config, tmp_path: Path):
    with user_error("invalid-value", where=r"upstream\.freeze_layers"):
        MultiTaskRunner(make_config(upstream__freeze_layers=4), tmp_path)


@pytest.mark.parametrize(
    ("name", "flags", "warned"),
    [
        ("hubert", {"optimizer__lr": 1.1e-3}, True),
        ("hubert", {"optimizer__lr": 1e-3}, False),
        ("hubert_tiny", {"optimizer__lr": 1.0}, False),
        ("hubert", {"optimizer__lr": 1.0, "upstream__freeze": True}, False),
        ("hubert", {"optimizer__lr": 1.0, "optimizer__groups": {"encoder": {"lr": 1e-5}}}, False),
        ("hubert", {"optimizer__groups": {"encoder": {"lr": 1.0}}}, True),
    ],
)
def test_a_high_rate_of_a_pre_trained_encoder_is_a_warning(
    make_config, tmp_path: Path, caplog, name: str, flags: dict, warned: bool
):
    # The tiny weights stand in for pre-trained ones.
    config = make_config(upstream__name=name, upstream__ckpt=str(TINY_WEIGHTS), **flags)
    MultiTaskRunner(config, tmp_path)._log_summary()
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    remedies = ("--freeze_upstream", "optimizer.groups.encoder.lr")
    assert any(all(word in text for word in remedies) for text in said) == warned
