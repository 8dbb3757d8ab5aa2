"""`optimizer.groups` in a config: layers, names of parts, types and ranges."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_mtl.config import Config, build_config
from tests.mistakes import user_error


def config_of(
    folder: Path, text: str, overrides: str | None = None, tasks: str = "ks,er"
) -> Config:
    (folder / "run.yaml").write_text(text)
    flags = {"downstream": tasks.split(","), "data": str(folder)}
    return build_config([folder / "run.yaml"], flags=flags, overrides=overrides)


def test_groups_of_several_layers_are_merged(tmp_path: Path) -> None:
    text = "optimizer: {lr: 1.0e-4, groups: {encoder: {lr: 1.0e-5, layer_decay: 0.9}, ks: {lr: 2}}}"
    overrides = "config.optimizer.groups.encoder.lr=3e-5,,config.optimizer.groups.heads.lr=1e-3"
    optimizer = config_of(tmp_path, text, overrides)["optimizer"]
    assert optimizer["lr"] == 1e-4
    assert optimizer["groups"] == {
        "encoder": {"lr": 3e-5, "layer_decay": 0.9},
        "ks": {"lr": 2},
        "heads": {"lr": 1e-3},
    }
    changed = config_of(tmp_path, text, "optimizer.name=Adam")["optimizer"]
    assert changed["groups"]["ks"] == {"lr": 2}
    removed = config_of(tmp_path, text, "optimizer.groups=null")["optimizer"]
    assert not removed["groups"]
    assert "groups" not in config_of(tmp_path, "seed: 1")["optimizer"]


def test_a_task_has_its_name_in_the_run(tmp_path: Path) -> None:
    text = 'optimizer: {groups: {"s3prl-mtl:ks": {lr: 2}, asr: {lr: 3}}}'
    # asr is installed and not in this run.
    assert config_of(tmp_path, text)["optimizer"]["groups"] == {"ks": {"lr": 2}, "asr": {"lr": 3}}


@pytest.mark.parametrize(
    ("groups", "code", "where", "fix"),
    [
        ("{encodr: {lr: 1}}", "unknown-name", r"groups\.encodr", "'encoder'"),
        ("{kss: {lr: 1}}", "unknown-name", r"groups\.kss", "'ks'"),
        ("{heads: {layer_decay: 0.5}}", "unknown-key", r"heads\.layer_decay in .*run.yaml", None),
        ("{heads: {rl: 1}}", "unknown-key", r"heads\.rl", "'lr'"),
        ("{heads: {lr: fast}}", "wrong-type", r"heads\.lr", None),
        ("{heads: {lr: -1}}", "invalid-value", r"heads\.lr", None),
        ("{heads: {lr: .nan}}", "invalid-value", r"heads\.lr", None),
        ("{encoder: {layer_decay: 1.5}}", "invalid-value", r"encoder\.layer_decay", None),
        ("{encoder: {layer_decay: 0}}", "invalid-value", r"encoder\.layer_decay", None),
        ("{encoder: {num_warmup_steps: 1.5}}", "wrong-type", r"num_warmup_steps", None),
        ("{encoder: 1}", "wrong-type", r"groups\.encoder in .*run.yaml", None),
        ("[1]", "wrong-type", r"optimizer\.groups in .*run.yaml", None),
    ],
)
def test_a_mistake_names_its_key(
    groups: str, code: str, where: str, fix: str | None, tmp_path: Path
) -> None:
    with user_error(code, where=where, fix=fix):
        config_of(tmp_path, f"optimizer: {{groups: {groups}}}")


@pytest.mark.parametrize(
    ("scheduler", "setting"),
    [
        ("null", "num_warmup_steps: 5"),
        ("{name: ExponentialLR, gamma: 0.9}", "num_warmup_steps: 5"),
        ("{name: OneCycleLR, max_lr: 1}", "lr: 5"),
    ],
)
def test_settings_that_the_schedule_does_not_have_are_refused(
    scheduler: str, setting: str, tmp_path: Path
) -> None:
    text = f"optimizer: {{groups: {{encoder: {{{setting}}}}}}}\nscheduler: {scheduler}"
    with user_error("conflicting-options", where=r"optimizer\.groups\.encoder"):
        config_of(tmp_path, text)


def test_an_encoder_cannot_be_frozen_for_the_run_and_for_its_first_steps(tmp_path: Path) -> None:
    with user_error("conflicting-options", where=r"runner\.unfreeze_after"):
        config_of(tmp_path, "upstream: {freeze: true}\nrunner: {unfreeze_after: 3}")
