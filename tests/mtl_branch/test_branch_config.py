"""The unchanged `multitask.yaml` of the branch in `-c`."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import yaml

from s3prl_mtl.cli.main import main
from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.mtl_branch.config import translate
from s3prl_mtl.tracking.recorder import read_results
from s3prl_mtl.training.preflight import check_splits
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.mistakes import user_error
from tests.mtl_branch.branch_config import NINE, REAL


def config_of(path: Path, tasks: list[str] = NINE, **flags):
    flags = {"downstream": tasks, "upstream.name": "hubert_tiny", "device": "cpu", **flags}
    return build_config(files=[path], flags=flags)


def changed(path: Path, folder: Path, change) -> Path:
    """A copy of the file after a change to what it holds."""
    values = yaml.safe_load(path.read_text())
    change(values)
    copy = folder / "changed.yaml"
    copy.write_text(yaml.safe_dump(values))
    return copy


def test_the_branchs_own_file_builds_and_all_nine_tasks_have_its_splits(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = config_of(REAL, data=str(tiny_corpus), cache_dir=str(manifest_cache))
    splits = {task: (config[task]["dev_splits"], config[task]["test_splits"]) for task in NINE}
    assert splits == {
        **dict.fromkeys(["pr", "ks", "sid", "er", "sd"], (["dev"], ["test"])),
        **dict.fromkeys(["ic", "sf"], (["valid"], ["test"])),
        "asr": (["dev-clean", "dev-other"], ["test-clean", "test-other"]),
        "sv": (["dev"], ["test"]),
    }
    runner = MultiTaskRunner(config, tmp_path / "run")
    check_splits(runner.config, runner.tasks)
    for task, (dev, test) in splits.items():
        for split in (*dev, *test):
            assert runner.tasks[task].expert.utterances(split) > 0, (task, split)


def test_missing_corpora_are_looked_for_in_the_data_folder(
    tiny_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    elsewhere = tmp_path / "ks"
    elsewhere.mkdir()

    def move(values):
        values["ks"]["datarc"]["speech_commands_root"] = str(elsewhere)

    file = changed(REAL, tmp_path, move)
    with caplog.at_level(logging.WARNING):
        config = config_of(file, data=str(tiny_corpus))
    datarc = {t: resolve(config).tasks[t].downstream_expert["datarc"] for t in NINE}
    assert datarc["ks"]["speech_commands_root"] == str(elsewhere)
    assert datarc["ks"]["speech_commands_test_root"].startswith(str(tiny_corpus))
    assert datarc["sd"]["data_dir"] == str(tiny_corpus / "Libri2Mix")
    assert datarc["pr"]["lexicon"] == [f"{tiny_corpus}/LibriSpeech/librispeech-lexicon.txt"]
    assert datarc["sv"]["dev_trials"] is None
    (said,) = [line for line in caplog.messages if str(tiny_corpus) in line]
    assert "ks speech_commands_test_root (/SpeechNet/datasets/speech_commands_test_set" in said
    assert "ks speech_commands_root" not in said


def test_the_data_folder_may_come_from_the_environment_or_another_file(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "data.yaml").write_text(f"data: {tiny_corpus}")
    both = build_config(files=[REAL, tmp_path / "data.yaml"], flags={"downstream": ["er"]})
    monkeypatch.setenv("SUPERB_DATA", str(tiny_corpus))
    for config in (both, config_of(REAL, ["er"])):
        datarc = resolve(config).tasks["er"].downstream_expert["datarc"]
        assert datarc["root"] == str(tiny_corpus / "IEMOCAP_full_release")


def test_without_a_data_folder_the_paths_of_the_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SUPERB_DATA", raising=False)
    with pytest.raises(UserError) as caught:
        MultiTaskRunner(config_of(REAL, ["er"]), tmp_path / "run")
    assert "er: /SpeechNet/datasets/IEMOCAP" in str(caught.value) and "--data" in str(caught.value)


@pytest.mark.parametrize(
    ("task", "part", "head", "advice"),
    [
        ("er", "modelrc", "DeepModel", r"UtteranceLevel.*-d s3prl:emotion"),
        ("pr", "model", "RNNs", r"FrameLevel.*-d s3prl:ctc"),
        ("asr", "modelrc", "Wav2Letter", r"RNNs or FrameLevel.*-d s3prl:asr"),
    ],
)
def test_an_unsupported_head_is_named_with_the_key_of_the_file(
    task: str, part: str, head: str, advice: str, multitask_yaml: Path, tmp_path: Path
):
    def choose(values):
        values[task][part]["select"] = head

    where = rf"^{task}\.{part}\.select in .*changed\.yaml"
    with user_error("unknown-name", where=where, fix=advice) as caught:
        config_of(changed(multitask_yaml, tmp_path, choose), [task])
    assert repr(head) in caught.value.what


def test_supported_values_are_translated(multitask_yaml: Path, tiny_corpus: Path):
    config = config_of(multitask_yaml)
    assert config["optimizer"] == {"name": "AdamW", "lr": 1e-5}
    assert config["scheduler"] == {"name": "linear_schedule_with_warmup", "num_warmup_steps": 1}
    assert config["runner"]["total_steps"] == 4
    assert config["runner"]["max_keep"] == 1
    datarc = {task: config[task]["downstream_expert"]["datarc"] for task in NINE}
    assert {task: datarc[task]["train_batch_size"] for task in NINE} == {
        **dict.fromkeys(NINE, 2),
        "sd": 1,
    }
    assert {datarc[task]["num_workers"] for task in NINE} == {0}
    assert datarc["ks"]["eval_batch_size"] == 2
    assert datarc["ic"]["eval_batch_size"] == 8
    assert datarc["asr"]["libri_root"] == datarc["pr"]["libri_root"] == f"{tiny_corpus}/LibriSpeech"
    assert datarc["sd"]["data_dir"] == str(tiny_corpus / "Libri2Mix")
    assert datarc["sv"]["test_trials"].endswith("veri_test2.txt")
    assert datarc["sid"]["max_timestep"] == 128_000
    heads = {task: config[task]["downstream_expert"] for task in NINE}
    assert heads["sf"]["model"]["RNNs"]["dim"] == [16, 16]
    assert heads["sv"]["modelrc"]["module_config"]["XVector"]["agg_dim"] == 24
    assert heads["sd"]["modelrc"] == {"rnn_layers": 1, "hidden_size": 16}
    splits = {task: (config[task]["dev_splits"], config[task]["test_splits"]) for task in NINE}
    assert splits["ic"] == (["valid"], ["test"])
    assert splits["asr"] == (["dev-clean"], ["test-clean"])


def test_keys_without_an_equivalent_are_logged_once_per_build(
    multitask_yaml: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    copy = tmp_path / "copy.yaml"
    copy.write_text(multitask_yaml.read_text())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            caplog.clear()
            config_of(copy)
            said = [message for message in caplog.messages if str(copy) in message]
            assert len(said) == 1
    for key in (
        "pr.text",
        "sf.metric",
        "er.datarc.pre_load",
        "asr.datarc.bucket_file",
        "sd.scorerc",
        "sv.datarc.train_meta_data",
        "pr.model.RNNs",
        "ks.looprc.eval_dataloaders",
    ):
        assert key in said[0]
    assert re.search(r"looprc\.eval_step: .*\b4\b", said[0])
    assert "asr.datarc.decoder_args" not in said[0]  # Without a language model, as here.


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        (("pr", "corpus", "batchsize"), "'batch_size'"),
        (("sd", "loaderrc", "train_dirs"), "'train_dir'"),
        (("ks", "looprc", "steps"), None),
        (("sv", "color"), None),
        (("runner", "toatl_steps"), "'total_steps'"),
        (("sound",), None),
    ],
)
def test_keys_that_the_branch_does_not_have_are_refused(
    path: tuple[str, ...], advice: str | None, multitask_yaml: Path, tmp_path: Path
):
    def add(values):
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = 1

    key = re.escape(".".join(path))
    with user_error("unknown-key", where=rf"^{key} in .*changed\.yaml", fix=advice):
        config_of(changed(multitask_yaml, tmp_path, add))


def test_sections_that_are_commented_out_are_switched_off(multitask_yaml: Path, tmp_path: Path):
    def comment_out(values):
        del values["scheduler"], values["specaug"]

    config = config_of(changed(multitask_yaml, tmp_path, comment_out))
    assert config["scheduler"] is None
    assert config["specaug"] is None


def test_ignored_choices_are_logged(multitask_yaml: Path, tmp_path: Path, caplog):
    def change(values):
        values["asr"]["datarc"]["decoder_args"]["decoder_type"] = "viterbi"
        values["sd"]["datarc"]["subsampling"] = 2
        values["sd"]["datarc"]["use_last_samples"] = True
        values["sv"]["datarc"]["vad_config"]["min_sec"] = 16_000

    with caplog.at_level(logging.WARNING):
        config_of(changed(multitask_yaml, tmp_path, change))
    (said,) = caplog.messages
    for key in (
        "asr.datarc.decoder_args",
        "sd.datarc.subsampling",
        "sv.datarc.vad_config.min_sec",
    ):
        assert f"{key}: " in said
    assert "use_last_samples" not in said


def test_a_decoder_with_a_language_model_is_translated(
    multitask_yaml: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def change(values):
        decoder = values["asr"]["datarc"]["decoder_args"]
        decoder |= {"decoder_type": "kenlm", "kenlm_model": "/x/4-gram.arpa", "lexicon": "/x/l.txt"}
        decoder |= {"beam": 50, "sil_weight": 0.5}

    with caplog.at_level(logging.WARNING):
        found = config_of(changed(multitask_yaml, tmp_path, change))
    assert found["asr"]["downstream_expert"]["decoder"] == {
        "lm": "/x/4-gram.arpa",
        "lexicon": "/x/l.txt",
        "beam": 50,
        "beam_threshold": 25,
        "beam_tokens": None,
        "lm_weight": 2,
        "word_score": -1,
        "splits": None,
    }
    assert "asr.datarc.decoder_args.sil_weight: " in caplog.text
    assert "unk_weight" not in caplog.text


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("separation_stft", r"ks: .*'separation_stft'.*ks\.folder in .*-d s3prl:separation_stft"),
        ("emotion", r"(er|ks): .*'(ks|er)'.*'er'"),
        (["keyword"], r"ks: .*\['keyword'\].*ks\.folder in "),
    ],
)
def test_blocks_of_other_experts_are_left_out_and_logged(
    folder: object, message: str, multitask_yaml: Path, tmp_path: Path, caplog
):
    def change(values):
        values["ks"]["folder"] = folder

    with caplog.at_level(logging.WARNING):
        config = config_of(changed(multitask_yaml, tmp_path, change), ["asr", "ic"])
    assert config["downstream"] == ["asr", "ic"]
    assert re.search(message, caplog.text)


@pytest.mark.parametrize(
    ("section", "value"),
    [("runner", [1]), ("optimizer", "AdamW")],
)
def test_sections_of_another_kind_are_refused(
    section: str, value: object, multitask_yaml: Path, tmp_path: Path
):
    def change(values):
        values[section] = value

    with user_error("wrong-type", where=rf"^{section} in .*changed\.yaml"):
        config_of(changed(multitask_yaml, tmp_path, change))


REMARKS = (
    "er.datarc.pre_load",
    "ks speech_commands_root (/nowhere/commands)",
    "'s3prl:misspelt'",
)


@pytest.fixture
def words_of_a_dry_run(multitask_yaml: Path, tiny_corpus: Path, tmp_path: Path) -> list[str]:
    """A command line whose files give rise to each of `REMARKS`."""

    def move(values):
        values["ks"]["datarc"]["speech_commands_root"] = "/nowhere/commands"

    (tmp_path / "more.yaml").write_text('"s3prl:misspelt": {downstream_expert: {size: 3}}')
    files = ["-c", str(changed(multitask_yaml, tmp_path, move)), "-c", str(tmp_path / "more.yaml")]
    words = ["-u", "hubert_tiny", "-d", "ks", "--data", str(tiny_corpus), "--device", "cpu"]
    return [*words, *files, "--dry-run"]


@pytest.mark.parametrize("place", ["named", "found"])
def test_warnings_about_a_config_are_once_in_the_log_and_once_on_the_terminal(
    place: str,
    words_of_a_dry_run: list[str],
    manifest_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Where the folder is named after the tasks, the config is built twice."""
    for number in (1, 2):
        home = tmp_path / str(number)
        home.mkdir()
        monkeypatch.chdir(home)
        more = ["-p", "run"] if place == "named" else []
        # A dry run has no log.
        words = [word for word in words_of_a_dry_run if word != "--dry-run"]
        settings = "runner.total_steps=1,,runner.test_first=false,,runner.test_last=false"
        settings += f",,cache_dir={manifest_cache}"
        assert main([*words, *more, "-o", settings]) == 0
        (log,) = home.rglob("log.txt")
        for text in (log.read_text(), capsys.readouterr().err):
            assert [text.count(remark) for remark in REMARKS] == [1, 1, 1]


def test_warnings_about_a_config_are_shown_if_the_run_cannot_start(
    words_of_a_dry_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*words_of_a_dry_run, "-p", str(tmp_path / "new"), "-o", "seed=none"]) == 2
    text = capsys.readouterr().err
    assert [text.count(remark) for remark in REMARKS] == [1, 1, 1]
    assert text.index(REMARKS[0]) < text.index("Where: seed in -o seed=none")


def test_a_block_may_have_another_name(multitask_yaml: Path, tmp_path: Path, caplog):
    def rename(values):
        values["asv"] = values.pop("sv")

    with caplog.at_level(logging.WARNING):
        config = config_of(changed(multitask_yaml, tmp_path, rename), ["sv"])
    assert config["sv"]["downstream_expert"]["modelrc"]["input_dim"] == 16
    assert re.search(r"\basv: .*'sv'", caplog.text)


def test_folders_of_diarization_must_lie_together(multitask_yaml: Path, tmp_path: Path):
    def move(values):
        values["sd"]["loaderrc"]["dev_dir"] = "/elsewhere/dev"

    named = r"sd\.loaderrc\.train_dir\b.*\bdev_dir\b.*\btest_dir\b.*\.yaml"
    with user_error("invalid-value", where=named):
        config_of(changed(multitask_yaml, tmp_path, move))


def test_optimizers_with_a_built_in_schedule_are_refused(multitask_yaml: Path, tmp_path: Path):
    def change(values):
        values["optimizer"] = {"name": "BertAdam_with_schedule", "lr": 1e-4}

    with user_error("not-supported", where=r"optimizer\.name in .*changed\.yaml", fix="AdamW"):
        config_of(changed(multitask_yaml, tmp_path, change))


def test_paths_beside_s3prls_downstream_folder_are_found(tmp_path: Path, multitask_yaml: Path):
    """s3prl runs in the folder that holds `downstream/multitask.yaml`, and paths begin there."""
    lists = tmp_path / "downstream" / "voxceleb1"
    lists.mkdir(parents=True)
    (lists / "veri_test_class.txt").write_text("")
    values = yaml.safe_load(multitask_yaml.read_text())
    values["sid"]["datarc"]["meta_data"] = "./downstream/voxceleb1/veri_test_class.txt"
    translated = translate(values, tmp_path / "downstream" / "multitask.yaml", DeferredLog())
    found = translated["sid"]["downstream_expert"]["datarc"]["meta_data"]
    assert Path(found).resolve() == (lists / "veri_test_class.txt").resolve()


def test_other_configs_are_left_as_they_are():
    values = {"runner": {"total_steps": 3}, "ks": {"downstream_expert": {}, "dev_splits": ["dev"]}}
    deferred = DeferredLog()
    assert translate(values, "own.yaml", deferred) is values
    experts = {"s3prl:ctc": {"folder": "/somewhere/ctc"}}
    assert translate(experts, "own.yaml", deferred) is experts


def test_two_steps_of_all_nine_tasks_from_the_file(
    multitask_yaml: Path, tmp_path: Path, manifest_cache: Path
):
    flags = {"runner.total_steps": 2, "runner.eval_step": 2, "cache_dir": str(manifest_cache)}
    config = config_of(multitask_yaml, **flags)
    MultiTaskRunner(config, tmp_path / "run").train()
    results = read_results(tmp_path / "run")
    assert {task: set(results[task]) for task in NINE} == {
        **{task: {"dev", "test"} for task in NINE},
        "ic": {"valid", "test"},
        "sf": {"valid", "test"},
        "asr": {"dev-clean", "test-clean"},
    }
