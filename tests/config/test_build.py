"""The layers of a config, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml

from s3prl_mtl.config import build_config, parse_tasks, resolve
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import Remarks


def config_of(tmp_path: Path, text: str, tasks: str = "ks", **arguments):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    flags = {"downstream": parse_tasks(tasks), "data": "/corpora"} | arguments.pop("flags", {})
    return build_config(files=[path], flags=flags, **arguments)


def test_each_layer_overrides_the_one_before(tmp_path: Path):
    text = "seed: 5\nrunner: {total_steps: 10, log_step: 7}\n"
    config = config_of(
        tmp_path, text, flags={"runner.total_steps": 20}, overrides="config.runner.log_step=9"
    )
    assert config["seed"] == 5
    assert config["runner"]["total_steps"] == 20
    assert config["runner"]["log_step"] == 9
    assert config["runner"]["eval_step"] == 5000


def test_a_task_brings_its_defaults_and_the_data_folder_is_filled_in(tmp_path: Path):
    config = config_of(tmp_path, "ks: {downstream_expert: {datarc: {num_workers: 0}}}")
    datarc = resolve(config)["ks"]["downstream_expert"]["datarc"]
    assert datarc["num_workers"] == 0
    assert datarc["speech_commands_root"] == "/corpora/speech_commands_v0.01"


def test_a_written_config_builds_the_same_config(tmp_path: Path):
    first = config_of(tmp_path, "optimizer: {name: SGD, lr: 0.1, momentum: 0.9}", tasks="ks,asr")
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(first))
    assert build_config(files=[again]) == first


def test_what_is_said_of_a_config_waits_for_who_asks_and_is_said_once(tmp_path: Path, caplog):
    folder = tmp_path / "tones"
    folder.mkdir()
    (folder / "expert.py").write_text("")
    (folder / "config.yaml").write_text("optimizer: {lr: 1}\ndownstream_expert: {size: 3}\n")

    def build(remarks: Remarks | None = None):
        return config_of(tmp_path, "", tasks=f"s3prl:{folder}", remarks=remarks)

    remarks = Remarks()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            build(remarks)
        assert not caplog.messages
        for _ in range(2):
            build(remarks)
            remarks.say()
        (said,) = caplog.records
        assert said.levelno == logging.INFO
        assert said.getMessage().startswith("s3prl:tones: of ")
        assert "optimizer and the counts of runner are for a run of that task" in said.getMessage()
        for number in (2, 3):
            build()
            assert caplog.messages == [said.getMessage()] * number


def test_remarks_are_said_in_their_order_also_where_what_is_inside_fails(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="inside"), Remarks() as remarks:
        remarks.add("first %s")
        remarks.say()
        remarks.add("second", level=logging.INFO)
        remarks.add("first %s")
        raise ValueError("inside")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "first %s"),
        ("INFO", "second"),
    ]


def test_the_arguments_of_the_branch_can_be_overridden(tmp_path: Path):
    config = config_of(tmp_path, "", overrides="config.optimizer.lr=1e-4,,args.seed=1")
    assert config["optimizer"]["lr"] == pytest.approx(1e-4)
    assert config["seed"] == 1


def test_all_is_the_nine_tasks():
    assert parse_tasks("all") == ["asr", "pr", "sf", "ks", "ic", "sid", "er", "sv", "sd"]
    assert parse_tasks("ks, asv,ks") == ["ks", "sv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runer: {total_steps: 3}", "Unknown key 'runer'.*'runner'"),
        ("runner: {total_step: 3}", r"Unknown key 'runner\.total_step'.*'total_steps'"),
        ("optimizer: {learning_rate: 3}", "AdamW has no setting 'learning_rate'"),
        ("optimizer: {name: Adan}", "no optimizer named 'Adan'.*'Adam'"),
        ("runner: {total_steps: many}", "total_steps must be a whole number, not 'many'"),
        ("runner: {total_steps: 1.5}", "total_steps must be a whole number"),
        ("seed: true", "seed must be a whole number"),
        ("precision: fp16", "fp32 or bf16"),
        ("runner: 3", "runner must be a mapping"),
        ("ks: {downstream_expert: {modelrc: {projector_dmi: 3}}}", "'projector_dim'"),
        ("kws: {downstream_expert: {}}", "Unknown key 'kws'.*'ks'"),
        ("runner: {log_step: 0}", "log_step must be at least 1"),
        ("cache_dir: ${nothing_there}", "cache_dir does not resolve"),
        ("cache_dir: 3", "cache_dir must be a path"),
        ("seed: -1", "seed must be at least 0"),
        ("ks: {downstream_expert: {datarc: {num_workers: -1}}}", r"num_workers must be at least 0"),
        ("- a\n- b\n", "no mapping at its top level"),
        ("a: [1,\n", "cannot be read as YAML"),
    ],
)
def test_mistakes_in_a_file_are_refused_with_a_way_out(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message):
        config_of(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr", "not of the form key=value"),
        ("args.sede=1", "no argument 'sede'.*'seed'"),
        ("config.optimzer.lr=1", "Unknown key 'optimzer'.*'optimizer'"),
    ],
)
def test_mistakes_in_an_override_are_refused(tmp_path: Path, override: str, message: str):
    with pytest.raises(UserError, match=message):
        config_of(tmp_path, "", overrides=override)


def test_another_optimizer_does_not_inherit_the_settings_of_the_first(tmp_path: Path):
    text = "optimizer: {name: SGD, momentum: 0.9}"
    config = config_of(tmp_path, text, overrides="optimizer.name=Adam,,optimizer.amsgrad=true")
    assert config["optimizer"] == {"name": "Adam", "lr": pytest.approx(1e-5), "amsgrad": True}


def test_a_schedule_and_specaugment_can_be_switched_off(tmp_path: Path):
    config = config_of(tmp_path, "scheduler: null\nspecaug: null\n")
    assert config["scheduler"] is None
    assert config["specaug"] is None


def test_a_missing_data_folder_names_the_tasks_that_need_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SUPERB_DATA", raising=False)
    with pytest.raises(UserError, match=r"ks, asr.*--data DIR or set SUPERB_DATA"):
        build_config(flags={"downstream": ["ks", "asr"]})


def test_the_data_folder_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUPERB_DATA", "/from/environment")
    config = build_config(flags={"downstream": ["ks"]})
    assert config["data"] == "/from/environment"


def test_a_file_may_hold_blocks_of_tasks_that_are_not_trained(tmp_path: Path):
    config = config_of(tmp_path, "asr: {downstream_expert: {datarc: {num_workers: 0}}}")
    assert "asr" not in config
    assert config["downstream"] == ["ks"]


def test_a_config_keeps_its_references_so_that_moved_corpora_can_be_named(tmp_path: Path):
    first = config_of(tmp_path, "")
    moved = build_config(base=first, flags={"data": "/elsewhere"})
    datarc = resolve(moved)["ks"]["downstream_expert"]["datarc"]
    assert datarc["speech_commands_root"] == "/elsewhere/speech_commands_v0.01"


def test_paths_do_not_depend_on_the_folder_that_a_run_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config = build_config(flags={"downstream": ["ks"], "data": "corpora", "cache_dir": "cache"})
    assert config["data"] == str(tmp_path / "corpora")
    assert config["cache_dir"] == str(tmp_path / "cache")


def test_a_run_can_be_evaluated_without_a_strangers_task_that_it_had(tmp_path: Path):
    base = config_of(tmp_path, "", tasks="ks,asr")
    base["downstream"].append("stranger")
    base["stranger"] = {"downstream_expert": {"size": 3}}
    config = build_config(base=base, flags={"downstream": ["asr"]})
    assert set(config) & {"ks", "stranger", "asr"} == {"asr"}


def test_no_task_at_all_is_refused():
    with pytest.raises(UserError, match="No task is named"):
        build_config(flags={"data": "/corpora"})
