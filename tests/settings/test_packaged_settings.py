"""`-c` takes files and the names of packaged settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_mtl.cli.main import command_parser
from s3prl_mtl.config import build_config
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS
from s3prl_mtl.settings import find_settings, packaged_settings
from tests.mistakes import user_error

ROOT = Path(__file__).parents[2]


def test_every_superb_task_and_the_demo_have_packaged_settings():
    assert {"demo", "demo_frozen", *(f"superb/{task}" for task in BUILT_IN_TASKS)} <= set(
        packaged_settings()
    )


def test_run_scripts_and_the_package_hold_the_same_files():
    for name, path in packaged_settings().items():
        if name.startswith(("demo", "superb/")):
            assert (ROOT / "run_scripts" / f"{name}.yaml").resolve() == path.resolve()


def test_the_help_lists_all_packaged_settings():
    shown = " ".join(command_parser("train").format_help().split())
    assert ", ".join(packaged_settings()) in shown


def test_a_file_comes_before_packaged_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    packaged = find_settings("demo")
    assert packaged.name == "demo.yaml"
    Path("demo").mkdir()
    assert find_settings("demo") == packaged
    Path("demo").rmdir()
    Path("demo").write_text("seed: 3\n")
    assert find_settings("demo") == Path("demo")


def test_a_config_is_built_from_packaged_settings(tmp_path: Path):
    config = build_config(["superb/ks"], flags={"data": str(tmp_path)})
    assert config["downstream"] == ["ks"] and config["upstream"]["freeze"] is True


def test_the_settings_of_speech_ft_are_its_shares_of_the_steps(tmp_path: Path):
    flags = {"downstream": ["asr"], "data": str(tmp_path)}
    config = build_config(["speech_ft"], flags=flags)
    steps, schedule = config["runner"]["total_steps"], config["scheduler"]
    assert config["runner"]["unfreeze_after"] == schedule["num_warmup_steps"] == 0.1 * steps
    assert schedule["num_hold_steps"] == 0.4 * steps
    assert config["optimizer"]["lr"] == 1e-4
    upstream = config["upstream"]
    assert (upstream["feature_selection"], upstream["freeze_layers"]) == ("last_hidden_state", 0)


@pytest.mark.parametrize(
    ("typed", "named"), [("superb/kss", "superb/ks"), ("dmeo", "demo"), ("x.yaml", "superb/sv")]
)
def test_a_missing_file_names_the_nearest_settings(typed: str, named: str):
    with user_error("file-missing", "^-c$", named):
        find_settings(typed)
