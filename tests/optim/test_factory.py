"""Optimizers and schedules by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from s3prl_mtl.optim.factory import (
    _can_fuse,
    make_optimizer,
    make_scheduler,
    optimizer_settings,
    scheduler_settings,
)
from tests.mistakes import user_error


@pytest.mark.parametrize(
    ("name", "settings", "is_fused"),
    [
        ("AdamW", {}, True),
        ("SGD", {"momentum": 0.9}, False),
        ("AdamW", {"fused": False}, False),
        ("AdamW", {"foreach": True}, False),
        ("Adagrad", {}, False),
        ("RMSprop", {}, False),
    ],
)
def test_optimizers_on_a_gpu_are_fused_unless_the_settings_say_otherwise(
    name: str, settings: dict, is_fused: bool
):
    on_gpu = SimpleNamespace(is_cuda=True, is_floating_point=lambda: True)
    kind = getattr(torch.optim, name)
    assert _can_fuse(kind, [on_gpu], {"name": name, **settings}) == is_fused
    groups = [{"params": [on_gpu]}, {"params": [nn.Parameter(torch.ones(1))]}]
    assert not _can_fuse(kind, groups, {"name": name, **settings})


def rates(settings: dict, total_steps: int) -> list[float]:
    optimizer = make_optimizer([nn.Parameter(torch.ones(1))], {"name": "SGD", "lr": 2.0})
    scheduler = make_scheduler(optimizer, settings, total_steps)
    assert scheduler is not None
    seen = []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_the_branchs_schedule_rises_over_the_warm_up_and_falls_to_zero():
    settings = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 2}
    assert rates(settings, 6) == pytest.approx([0.0, 1.0, 2.0, 1.5, 1.0, 0.5])


def test_the_schedule_of_speech_ft_holds_the_rate_after_the_warm_up():
    # 10 % up, 40 % held, then linearly to 0 (schedulers.py of nervjack2/Speech-FT).
    settings = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 1, "num_hold_steps": 4}
    assert rates(settings, 10) == pytest.approx([0, 2, 2, 2, 2, 2, 1.6, 1.2, 0.8, 0.4])


def test_a_group_has_its_own_warm_up_from_its_first_step():
    groups = [
        {"params": [nn.Parameter(torch.ones(1))]},
        {"params": [], "lr": 4.0, "num_warmup_steps": 2, "first_step": 2},
    ]
    optimizer = make_optimizer(groups, {"name": "SGD", "lr": 2.0, "groups": {"heads": {}}})
    settings = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 1}
    scheduler = make_scheduler(optimizer, settings, 8)
    seen = []
    for _ in range(8):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    # From step 1 to 8 in 7 equal parts; from step 2 to 4 up, from there to 8 down.
    assert [first for first, _ in seen] == pytest.approx(
        [0, *(2 * (8 - k) / 7 for k in range(1, 8))]
    )
    assert [second for _, second in seen] == pytest.approx([0, 0, 0, 2, 4, 3, 2, 1])


@pytest.mark.parametrize(
    "name", [name for name in vars(torch.optim) if name[0].isupper() and name != "Optimizer"]
)
def test_a_group_may_be_empty(name: str):
    if name in ("LBFGS", "SparseAdam"):
        return
    parameter = nn.Parameter(torch.ones(3, 3))
    optimizer = make_optimizer([{"params": []}, {"params": [parameter]}], {"name": name, "lr": 0.1})
    parameter.sum().backward()
    optimizer.step()
    assert (parameter != 1).any()
    optimizer.load_state_dict(optimizer.state_dict())


def test_torchs_schedules_can_be_named():
    assert rates({"name": "ExponentialLR", "gamma": 0.5}, 3) == pytest.approx([2.0, 1.0, 0.5])
    assert len(rates({"name": "OneCycleLR", "max_lr": 1.0}, 5)) == 5


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "RAdam", "Adagrad"])
def test_several_optimizers_take_a_step(name: str):
    parameter = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([parameter], {"name": name, "lr": 0.1})
    parameter.sum().backward()
    optimizer.step()
    assert (parameter < 1).all()


def test_no_schedule_is_a_constant_rate():
    optimizer = make_optimizer([nn.Parameter(torch.ones(1))], {"name": "SGD", "lr": 2.0})
    assert make_scheduler(optimizer, None, 10) is None


def test_the_settings_of_an_optimizer_are_its_own():
    assert "momentum" in optimizer_settings("SGD")
    assert "betas" in optimizer_settings("AdamW")
    assert "params" not in optimizer_settings("AdamW")
    assert "num_warmup_steps" in scheduler_settings("linear_schedule_with_warmup")


def test_unusable_values_are_refused():
    with user_error("invalid-value", where="optimizer"):
        make_optimizer([nn.Parameter(torch.ones(1))], {"name": "SGD", "lr": -1.0})
    with user_error("unknown-name", where=r"scheduler\.name", fix="Cosine"):
        scheduler_settings("Cosine")
