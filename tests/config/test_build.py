"""Layers of a config, and invalid settings."""

from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from s3prl_mtl.config import DEFAULT_PATH, build_config, parse_tasks, resolve
from s3prl_mtl.config.schema import Settings
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.fileio.yaml_files import read_yaml
from tests.mistakes import user_error


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


def test_task_defaults_are_added_and_the_data_folder_is_substituted(tmp_path: Path):
    config = config_of(tmp_path, "ks: {downstream_expert: {datarc: {num_workers: 0}}}")
    datarc = resolve(config).tasks["ks"].downstream_expert["datarc"]
    assert datarc["num_workers"] == 0
    assert datarc["speech_commands_root"] == "/corpora/speech_commands_v0.01"


def test_a_written_config_builds_the_same_config(tmp_path: Path):
    first = config_of(tmp_path, "optimizer: {name: SGD, lr: 0.1, momentum: 0.9}", tasks="ks,asr")
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(first))
    assert build_config(files=[again]) == first


def test_warnings_about_a_config_are_logged_once_and_only_on_request(tmp_path: Path, caplog):
    folder = tmp_path / "tones"
    folder.mkdir()
    (folder / "expert.py").write_text("")
    (folder / "config.yaml").write_text("optimizer: {lr: 1}\ndownstream_expert: {size: 3}\n")

    def build(deferred: DeferredLog | None = None):
        return config_of(tmp_path, "", tasks=f"s3prl:{folder}", deferred=deferred)

    deferred = DeferredLog()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            build(deferred)
        assert not caplog.messages
        for _ in range(2):
            build(deferred)
            deferred.flush()
        (said,) = caplog.records
        assert said.levelno == logging.INFO
        assert "s3prl:tones" in said.getMessage() and str(folder) in said.getMessage()
        for number in (2, 3):
            build()
            assert caplog.messages == [said.getMessage()] * number


def test_warnings_are_logged_in_order_even_after_an_error(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="inside"), DeferredLog() as deferred:
        deferred.add("first %s")
        deferred.flush()
        deferred.add("second", level=logging.INFO)
        deferred.add("first %s")
        raise ValueError("inside")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "first %s"),
        ("INFO", "second"),
    ]


def test_the_arguments_of_the_branch_can_be_overridden(tmp_path: Path):
    config = config_of(tmp_path, "", overrides="config.optimizer.lr=1e-4,,args.seed=1")
    assert config["optimizer"]["lr"] == pytest.approx(1e-4)
    assert config["seed"] == 1


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("weights:asv=2,s3prl-mtl:ks=1", "weights:sv=2,ks=1"),
        ("every:asv=2", "every:sv=2"),
        ("every:2", "every:2"),
    ],
)
def test_a_sampling_rule_takes_other_names_of_tasks(tmp_path: Path, rule: str, named: str):
    config = config_of(tmp_path, f"runner: {{sampling: '{rule}'}}", tasks="ks,asv")
    assert config["runner"]["sampling"] == named


def test_all_is_the_nine_tasks():
    assert parse_tasks("all") == ["asr", "pr", "sf", "ks", "ic", "sid", "er", "sv", "sd"]
    assert parse_tasks("ks, asv,ks") == ["ks", "sv"]


@pytest.mark.parametrize(
    ("text", "code", "where", "fix"),
    [
        ("runer: {total_steps: 3}", "unknown-key", "^runer in .*run.yaml", "'runner'"),
        ("runner: {total_step: 3}", "unknown-key", r"^runner\.total_step in", "'total_steps'"),
        ("optimizer: {learning_rate: 3}", "unknown-key", r"^optimizer\.learning_rate in", "lr"),
        ("optimizer: {name: Adan}", "unknown-name", "optimizer", "'Adam'"),
        ("optimizer: {lr: fast}", "wrong-type", r"^optimizer\.lr in", None),
        ("optimizer: AdamW", "wrong-type", "^optimizer in", None),
        ("runner: {total_steps: many}", "wrong-type", r"^runner\.total_steps in", None),
        ("runner: {total_steps: 1.5}", "wrong-type", r"^runner\.total_steps in", None),
        ("runner: {total_steps: null}", "wrong-type", r"^runner\.total_steps in", None),
        ("seed: true", "wrong-type", "^seed in", None),
        ("cache_dir: 3", "wrong-type", "^cache_dir in", None),
        ("runner: 3", "wrong-type", "^runner in", None),
        ("specaug: {time_mask_width_range: [a, 1]}", "wrong-type", "time_mask_width_range", None),
        ("precision: fp16", "invalid-value", "^precision in", None),
        ("distributed: {parallel: both}", "invalid-value", r"^distributed\.parallel in", None),
        ("runner: {log_step: 0}", "invalid-value", r"^runner\.log_step in .*run.yaml", None),
        ("runner: {num_workers: -1}", "invalid-value", r"^runner\.num_workers in", None),
        ("runner: {gradient_clipping: 0}", "invalid-value", "gradient_clipping in", None),
        ("runner: {gradient_clipping: .inf}", "invalid-value", "gradient_clipping in", None),
        ("runner: {max_pass_seconds: .nan}", "invalid-value", "max_pass_seconds in", None),
        ("perturb: {snr: [5, .nan]}", "invalid-value", r"^perturb\.snr in", None),
        ("optimizer: {lr: .nan}", "invalid-value", r"^optimizer\.lr in", None),
        ("optimizer: {betas: [0.9, .inf]}", "invalid-value", r"^optimizer\.betas in", None),
        ("balancer: {name: fixed, ks: .nan}", "invalid-value", r"^balancer\.ks in", None),
        ("seed: -1", "invalid-value", "^seed in", None),
        ("seed: 9223372036854775808", "invalid-value", "^seed in", None),
        ("cache_dir: ${nothing_there}", "invalid-value", "cache_dir", None),
        (
            "ks: {downstream_expert: {modelrc: {projector_dmi: 3}}}",
            "unknown-key",
            r"^ks\.downstream_expert\.modelrc\.projector_dmi in",
            "'projector_dim'",
        ),
        (
            "ks: {downstream_expert: {datarc: {num_workers: -1}}}",
            "invalid-value",
            r"^ks\.downstream_expert\.datarc\.num_workers in .*run.yaml",
            None,
        ),
        (
            "ks: {downstream_expert: {datarc: {num_workers: two}}}",
            "wrong-type",
            r"^ks\.downstream_expert\.datarc\.num_workers in",
            "2",
        ),
        ("ks: {package: [a]}", "wrong-type", r"^ks\.package in .*run.yaml", None),
        ("ks: {train_split: 3}", "wrong-type", r"^ks\.train_split in .*run.yaml", None),
        ("ks: {train_split: null}", "wrong-type", r"^ks\.train_split in", None),
        ("ks: {dev_splits: dev}", "wrong-type", r"^ks\.dev_splits in .*run.yaml", r"\[dev\]"),
        ("ks: {dev_splits: {a: 1}}", "wrong-type", r"^ks\.dev_splits in", None),
        ("ks: {test_splits: [1]}", "wrong-type", r"^ks\.test_splits in .*run.yaml", None),
        ("ks: {test_splits: 3}", "wrong-type", r"^ks\.test_splits in", None),
        ("ks: {downstream_expert: 3}", "wrong-type", r"^ks\.downstream_expert in", None),
        ("ks: 3", "wrong-type", "^ks in .*run.yaml", None),
        (
            "upstream: {feature_selection: all}",
            "invalid-value",
            r"^upstream\.feature_selection in .*run.yaml",
            None,
        ),
        (
            "specaug: {time_warp_mode: cubic}",
            "invalid-value",
            r"^specaug\.time_warp_mode in .*run.yaml",
            None,
        ),
        ("kws: {downstream_expert: {}}", "unknown-key", "^kws in", "'ks'"),
        ("- a\n- b\n", "file-malformed", "-c", None),
        ("a: [1,\n", "file-malformed", "-c", None),
    ],
)
def test_mistakes_in_a_file_name_key_and_file(
    tmp_path: Path, text: str, code: str, where: str, fix: str | None
):
    with user_error(code, where, fix):
        config_of(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "code", "where", "fix"),
    [
        ("optimizer.lr", "invalid-value", "-o", "config.optimizer.lr=1e-4"),
        ("args.sede=1", "unknown-key", "-o args.sede=1", "'seed'"),
        ("config.optimzer.lr=1", "unknown-key", "-o config.optimzer.lr=1", "'optimizer'"),
        ("runner.total_steps=x", "wrong-type", "-o runner.total_steps=x", None),
        ("ks.dev_splits=dev", "wrong-type", r"^ks\.dev_splits in -o ks", r"\[dev\]"),
        ("asr.folder=x", "unknown-key", "asr", None),
    ],
)
def test_mistakes_in_an_override_name_it(
    tmp_path: Path, override: str, code: str, where: str, fix: str | None
):
    with user_error(code, where, fix):
        config_of(tmp_path, "", overrides=override)


def test_a_resolved_config_has_the_types_of_the_schema(tmp_path: Path):
    text = "cache_dir: /cache\nrunner: {gradient_clipping: 2}\nspecaug: {num_time_mask: 1}\n"
    config = resolve(config_of(tmp_path, text, tasks="ks,asr"))
    assert config.cache_dir == Path("/cache") and config.data == Path("/corpora")
    assert isinstance(config.runner.gradient_clipping, float)
    assert config.specaug is not None and config.specaug.time_mask_width_range == [0, 40]
    assert list(config.tasks) == config.downstream == ["ks", "asr"]
    assert config.tasks["ks"].package == "s3prl-mtl"
    with pytest.raises(FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]


def test_the_settings_of_a_task_of_the_right_type_are_taken(tmp_path: Path):
    text = (
        "ks: {package: s3prl-mtl, train_split: a, dev_splits: [b, c], test_splits: ['${device}']}"
    )
    (tmp_path / "expert.py").write_text("")
    override = f"s3prl:x.folder={tmp_path},,s3prl:x.dev_splits=[d],,s3prl:x.downstream_expert.a=1"
    tasks = resolve(config_of(tmp_path, text)).tasks
    tasks |= resolve(config_of(tmp_path, "", tasks="s3prl:x", overrides=override)).tasks
    ks, other = tasks["ks"], tasks["s3prl:x"]
    assert (ks.package, ks.train_split, ks.dev_splits) == ("s3prl-mtl", "a", ["b", "c"])
    assert ks.test_splits == ["auto"]
    assert (other.folder, other.train_split) == (str(tmp_path), "train")
    assert (other.dev_splits, other.test_splits) == (["d"], None)
    assert other.downstream_expert == {"a": 1}


def test_the_defaults_have_a_value_for_every_setting():
    schema = OmegaConf.merge(OmegaConf.structured(Settings), read_yaml(DEFAULT_PATH, "defaults"))
    assert not OmegaConf.missing_keys(schema)


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
    with user_error("corpus-unset", fix="--data DIR or set SUPERB_DATA") as caught:
        build_config(flags={"downstream": ["ks", "asr"]})
    assert "ks, asr" in caught.value.what


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
    datarc = resolve(moved).tasks["ks"].downstream_expert["datarc"]
    assert datarc["speech_commands_root"] == "/elsewhere/speech_commands_v0.01"


def test_paths_do_not_depend_on_the_folder_that_a_run_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config = build_config(flags={"downstream": ["ks"], "data": "corpora", "cache_dir": "cache"})
    assert config["data"] == str(tmp_path / "corpora")
    assert config["cache_dir"] == str(tmp_path / "cache")


def test_a_run_can_be_evaluated_without_an_uninstalled_task(tmp_path: Path):
    base = config_of(tmp_path, "", tasks="ks,asr")
    base["downstream"].append("stranger")
    base["stranger"] = {"downstream_expert": {"size": 3}}
    config = build_config(base=base, flags={"downstream": ["asr"]})
    assert set(config) & {"ks", "stranger", "asr"} == {"asr"}


def test_a_config_without_tasks_is_refused():
    with user_error("missing-option", where="-d"):
        build_config(flags={"data": "/corpora"})


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({"downstream": []}, "upstream"),
        ({"upstream": {"name": "hubert"}}, "downstream"),
        ({"upstream": {"name": "hubert"}, "downstream": ["ks"]}, "ks"),
        ({}, "upstream, downstream"),
    ],
)
def test_an_incomplete_config_is_an_error(config, missing):
    with user_error("missing-option", where=missing):
        resolve(config)


def test_a_setting_that_an_earlier_version_lacked_gets_its_default(tmp_path: Path):
    config = config_of(tmp_path, "")
    del config["runner"]["test_last"], config["specaug"]
    settings = resolve(config)
    assert settings.runner.test_last is True
    assert settings.specaug is not None
    assert settings.specaug.num_freq_mask == 4
