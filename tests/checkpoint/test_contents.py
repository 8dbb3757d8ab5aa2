"""Contents of checkpoints: dictionary and dataclass, and state dicts that do not fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from s3prl_mtl.checkpoint.contents import OptimizerState, RunCheckpoint
from s3prl_mtl.checkpoint.restore import encoder_weights
from s3prl_mtl.upstreams.strict_loading import load_strictly
from tests.comparison import assert_same
from tests.mistakes import user_error


def content() -> dict[str, Any]:
    """The dictionary of a `states-*.ckpt`, format 2."""
    return {
        "Format": 2,
        "Step": 3,
        "Tallies": {"dropped_steps": {}},
        "Config": {"seed": 1},
        "Upstream": {"model.w": torch.ones(2)},
        "UpstreamInfo": {"kind": "hubert"},
        "Featurizer": {"weights": torch.zeros(3)},
        "Tasks": {
            "ks": {
                "Downstream": {"w": torch.ones(1)},
                "Labels": {"classes": ["yes"]},
                "Decision": {"threshold": 0.5},
                "Stream": {"epoch": 2},
            }
        },
        "EvaluatedStep": 2,
        "Optimizer": {"Settings": {"lr": 0.1}, "State": {"Upstream/w": {"step": 3}}},
        "Scheduler": None,
        "Placement": {"world_size": 1, "tasks": {"ks": {"0": [0]}}},
        "Unused": None,
        "Random": [{"torch": torch.zeros(1)}],
    }


def best() -> dict[str, Any]:
    """The dictionary of a `*-best.ckpt`."""
    state = content()
    for key in ("EvaluatedStep", "Optimizer", "Scheduler", "Placement", "Unused", "Random"):
        del state[key]
    del state["Tasks"]["ks"]["Stream"]
    return state


@pytest.mark.parametrize("make", [content, best])
def test_the_dictionary_of_a_file_survives_the_round_trip(make) -> None:
    found = RunCheckpoint.from_dict(make(), "a file").to_dict()
    assert list(found) == list(make())
    assert_same(found, make())


def test_a_best_checkpoint_has_no_training_state() -> None:
    assert RunCheckpoint.from_dict(best(), "a file").training is None


@pytest.mark.parametrize("key", [key for key in content() if key not in ("Format", "Optimizer")])
def test_an_absent_part_is_named(key: str) -> None:
    state = content()
    del state[key]
    with user_error("checkpoint-incomplete", where=rf"^{key}\b.*\ba file\b"):
        RunCheckpoint.from_dict(state, "a file")


@pytest.mark.parametrize("key", ["Downstream", "Labels", "Decision", "Stream"])
def test_an_absent_part_of_a_task_is_named(key: str) -> None:
    state = content()
    del state["Tasks"]["ks"][key]
    with user_error("checkpoint-incomplete", where=rf"^{key}\b.*\bks\b.*\ba file\b"):
        RunCheckpoint.from_dict(state, "a file")


def test_an_optimizer_takes_the_state_of_the_parameters_that_it_has() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    both = torch.optim.AdamW([*first.parameters(), *second.parameters()], lr=0.5)
    (first(torch.ones(2)) + second(torch.ones(2))).sum().backward()
    both.step()
    names = dict(zip("abcd", [*first.parameters(), *second.parameters()], strict=True))
    saved = OptimizerState.capture(both, names)
    fewer = torch.optim.AdamW([*second.parameters()], lr=0.1)
    saved.restore(fewer, names)
    found = OptimizerState.capture(fewer, names)
    assert found.groups[""]["lr"] == 0.5
    assert_same(found.state, {name: saved.state[name] for name in ("c", "d")})


def test_groups_keep_their_settings_and_states_in_any_order_of_their_parameters() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    names = dict(zip("abcd", [*first.parameters(), *second.parameters()], strict=True))

    def optimizer(lr: float, *parts: str) -> torch.optim.Optimizer:
        modules = {"one": [second], "other": [first], "none": []}
        return torch.optim.AdamW(
            [
                {"part": p, "params": [w for m in modules[p] for w in m.parameters()], "lr": lr}
                for p in parts
            ]
        )

    before = optimizer(0.5, "one", "other", "none")
    first(second(torch.ones(2))).sum().backward()
    before.step()
    before.param_groups[1]["lr"] = 0.25
    saved = OptimizerState.capture(before, names)
    assert saved.groups["one"]["lr"] == 0.5 and saved.groups["other"]["lr"] == 0.25
    assert_same(saved.state["a"]["exp_avg"], before.state[first.weight]["exp_avg"])
    written = OptimizerState.from_dict(saved.to_dict(), "a file")
    after = optimizer(0.1, "none", "other", "one")
    written.restore(after, names)
    assert [group["lr"] for group in after.param_groups] == [0.5, 0.25, 0.5]
    assert_same(OptimizerState.capture(after, names), saved)
    with user_error("resume-conflict", where=r"optimizer\.groups"):
        saved.restore(optimizer(0.1, "one", "other"), names)


def test_the_first_names_of_each_kind_are_shown_and_the_others_counted() -> None:
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))
    weights = {f"other.{index}": torch.zeros(1) for index in range(5)}
    weights |= {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(2)}
    with user_error("checkpoint-mismatch", where="^-i$") as caught:
        load_strictly(module, weights, "the head", "-i")
    for shown in (
        r" 1\.weight, 1\.bias, 2\.weight\b[^;,.]*\b55\b",
        r" other\.0, other\.1, other\.2\b[^;,.]*\b2\b",
        r" 0\.weight\b[^;]*\(3, 2\)[^;]*\(2, 2\)",
    ):
        assert re.search(shown, caught.value.what)


def test_a_value_of_another_type_is_named() -> None:
    with user_error("checkpoint-mismatch") as caught:
        load_strictly(nn.Linear(2, 2), {"weight": torch.zeros(2, 2), "bias": 5}, "it", "-i")
    assert re.search(r"\bbias\b.*\bint\b.*\(2,\)", caught.value.what)


def test_s3prls_prefix_is_kept_if_names_would_collide() -> None:
    both = {"model.a": torch.zeros(1), "a": torch.ones(1)}
    assert encoder_weights(both) == both
    one = {"model.a": torch.zeros(1), "b": torch.ones(1)}
    assert set(encoder_weights(one)) == {"a", "b"}


@pytest.mark.parametrize("config", [{}, {"upstream": None}, {"upstream": {"name": "hubert"}}])
def test_a_config_without_settings_of_the_encoder_is_an_error(config) -> None:
    saved = RunCheckpoint.from_dict({**best(), "Config": config}, "a file")
    with user_error("checkpoint-incomplete"):
        _ = saved.upstream_config
