"""Default settings of the tasks, and the packaged ones: SUPERB's and the branch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import s3prl_mtl
from s3prl_mtl import load_task
from s3prl_mtl.config import build_config
from s3prl_mtl.optim.factory import optimizer_settings
from s3prl_mtl.registry.plugins import task_defaults
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS

SETTINGS = Path(s3prl_mtl.__file__).with_name("settings")
SUPERB = SETTINGS / "superb"

# Batch size, accumulated batches, steps, clipping, optimizer, learning rate, SpecAugment:
# SUPERB's settings for a frozen encoder.
PUBLISHED = {
    "asr": (16, 1, 200_000, 1, "Adam", 1e-4, True),
    "pr": (64, 2, 100_000, 1, "Adam", 1e-2, False),
    "sf": (32, 1, 200_000, 1, "Adam", 1e-4, True),
    "ks": (32, 1, 200_000, 1, "Adam", 1e-4, False),
    "ic": (32, 1, 200_000, 1, "Adam", 1e-4, False),
    "sid": (8, 4, 200_000, 1, "Adam", 1e-4, False),
    "er": (4, 8, 30_000, 1, "Adam", 1e-4, False),
    "sv": (10, 5, 200_000, 1000, "AdamW", 1e-4, False),
    "sd": (8, 4, 30_000, 1, "Adam", 1e-4, False),
}
# Parameters of SUPERB's heads on HuBERT Base (768 wide) with the label spaces of the full corpora.
LABEL_SPACES = {
    "asr": {"symbols": ["<s>", "<pad>", "</s>", "<unk>", *map(str, range(28))]},
    "pr": {"vocabulary": ["<pad>", "<eos>", "<unk>", *map(str, range(71))]},
    "sf": {
        "vocabulary": ["<pad>", "<eos>", "<unk>", " ", *map(str, range(27))],
        "slots": [f"slot{number}" for number in range(39)],
    },
    "ks": {"classes": list(map(str, range(12)))},
    "ic": {
        "action": list(map(str, range(6))),
        "object": list(map(str, range(14))),
        "location": list(map(str, range(4))),
    },
    "sid": {"classes": list(map(str, range(1251)))},
    "er": {"classes": list(map(str, range(4)))},
    "sv": {"speakers": list(map(str, range(1211)))},
    "sd": {"speakers_per_recording": 2},
}


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def lstm(inputs: int, width: int) -> int:
    return 4 * width * (inputs + width + 2)


RECURRENT = linear(768, 1024) + 2 * lstm(1024, 1024) + 2 * lstm(2048, 1024)
PARAMETERS = {
    "asr": RECURRENT + linear(2048, 32),
    "pr": linear(768, 256) + linear(256, 74),
    "sf": RECURRENT + linear(2048, 31 + 78),
    "ks": linear(768, 256) + linear(256, 12),
    "ic": linear(768, 256) + linear(256, 24),
    "sid": linear(768, 256) + linear(256, 1251),
    "er": linear(768, 256) + linear(256, 4),
    "sv": linear(768, 512)
    + linear(5 * 512, 512)
    + 2 * linear(3 * 512, 512)
    + linear(512, 512)
    + linear(512, 1500)
    + linear(3000, 512)
    + linear(512, 512)
    + 512 * 1211,
    "sd": lstm(768, 512) + linear(512, 2),
}


@pytest.mark.parametrize("task", BUILT_IN_TASKS)
def test_the_default_head_has_the_size_of_superb(task: str, tmp_path: Path) -> None:
    config = build_config(flags={"downstream": [task], "data": str(tmp_path / "nowhere")})
    block = config[task]
    expert = load_task(task)(
        768, 320, block["downstream_expert"], tmp_path, labels=LABEL_SPACES[task]
    )
    assert sum(p.numel() for p in expert.parameters()) == PARAMETERS[task]
    assert block["train_split"] == expert.train_split
    assert block["dev_splits"] == [expert.dev_split]
    assert block["test_splits"] == [expert.test_split]
    assert block["downstream_expert"]["datarc"]["train_batch_size"] == (1 if task == "sd" else 2)


@pytest.mark.parametrize("task", BUILT_IN_TASKS)
def test_run_scripts_hold_the_published_setting_of_each_task(task: str, tmp_path: Path) -> None:
    config = build_config([SUPERB / f"{task}.yaml"], flags={"data": str(tmp_path)})
    runner, optimizer = config["runner"], config["optimizer"]
    found = (
        config[task]["downstream_expert"]["datarc"]["train_batch_size"],
        runner["gradient_accumulate_steps"],
        runner["total_steps"],
        runner["gradient_clipping"],
        optimizer["name"],
        optimizer["lr"],
        config["specaug"] is not None,
    )
    assert found == PUBLISHED[task]
    assert "lr" in optimizer_settings(optimizer["name"])
    assert config["downstream"] == [task]
    assert config["upstream"]["freeze"] is True
    assert config["scheduler"] is None


@pytest.mark.parametrize("task", BUILT_IN_TASKS)
def test_every_default_path_lies_under_the_data_folder(task: str) -> None:
    datarc = task_defaults(task)["downstream_expert"]["datarc"]
    text = yaml.safe_dump(datarc)
    assert "${data}/" in text
    assert not any(isinstance(value, str) and value.startswith("/") for value in datarc.values())


def test_the_preset_of_the_branch_changes_what_the_branch_did_otherwise() -> None:
    flags = {"data": "/corpora"}
    tasks = ["asr", "pr", "sf", "ks", "ic", "sid", "er", "sv", "sd"]
    branch = build_config([SETTINGS / "branch.yaml"], flags)
    default = build_config((), {**flags, "downstream": tasks})
    assert branch["downstream"] == tasks
    expert = "downstream_expert"
    assert dict(differences(branch, default)) == {
        "upstream.feature_selection": "layer_results",
        f"asr.{expert}.datarc.train_batch_size": 1,
        f"asr.{expert}.modelrc.scoring": "branch",
        **{
            f"{task}.{expert}.{key}": value
            for task in ("pr", "sf")
            for key, value in (
                ("datarc.bucketed", False),
                ("datarc.sliding", True),
                ("model.decoding", "merged"),
            )
        },
        "sv.dev_splits": ["test"],
    }


def differences(one, other, path=""):
    """The dotted keys whose values differ, with those of `one`."""
    for key, value in one.items():
        if isinstance(value, dict):
            yield from differences(value, other[key], f"{path}{key}.")
        elif value != other[key]:
            yield f"{path}{key}", value
