"""Specs `s3prl:...` after `-d`, and the blocks of the config that they become."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from s3prl_mtl.config import build_config, parse_tasks, resolve
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import load_task, task_defaults
from s3prl_mtl.s3prl_compat.task_spec import ExpertSpec, parse_spec
from tests.mistakes import user_error
from tests.s3prl_compat.conftest import CONFIG, EXPERT


def tones_config(words: list[str], **options) -> dict:
    flags = {"downstream": words, "upstream.name": "hubert_tiny"} | options.pop("flags", {})
    return build_config(flags=flags, **options)


def test_a_plain_spec_is_a_name():
    assert parse_spec("s3prl:ctc") == ExpertSpec("s3prl:ctc")
    assert parse_spec("s3prl:sf=ctc") == ExpertSpec("s3prl:sf", "ctc")


def test_a_task_is_named_after_its_folder(expert_folder, monkeypatch: pytest.MonkeyPatch):
    folder = expert_folder()
    assert parse_spec(f"s3prl:{folder}") == ExpertSpec("s3prl:tones", str(folder))
    config = folder / "config.yaml"
    assert parse_spec(f"s3prl:{config}") == ExpertSpec("s3prl:tones", str(folder), str(config))
    assert parse_spec(f"s3prl:my-task={folder}").name == "s3prl:my-task"
    monkeypatch.chdir(folder.parent)
    assert parse_tasks("s3prl:./tones") == [f"s3prl:tones={folder}"]
    assert parse_tasks(f"s3prl:tones={folder}") == [f"s3prl:tones={folder}"]


def test_a_config_file_may_be_below_the_folder(expert_folder):
    folder = expert_folder(config=None)
    below = folder / "configs" / "large.yaml"
    below.parent.mkdir()
    below.write_text(CONFIG)
    config = tones_config([f"s3prl:{below}"])
    assert config["s3prl:tones"]["folder"] == str(folder)
    assert config["s3prl:tones"]["config"] == str(below)


def test_the_config_file_gives_settings_and_splits(expert_folder):
    folder = expert_folder()
    block = tones_config([f"s3prl:{folder}"])["s3prl:tones"]
    assert block == {
        "folder": str(folder),
        "config": str(folder / "config.yaml"),
        "train_split": "train",
        "dev_splits": ["dev"],
        "test_splits": ["dev"],
        "downstream_expert": {"corpus": {"size": 5, "num_workers": 0}},
    }


@pytest.mark.parametrize(
    ("listed", "dev", "test"),
    [
        ("[dev, test]", ["dev"], ["test"]),
        ("[dev-clean]", ["dev-clean"], ["dev-clean"]),
        ("[dev, vcc2018_test, vcc2016_test]", ["dev"], ["vcc2018_test", "vcc2016_test"]),
        ("[]", ["test"], ["test"]),
    ],
)
def test_the_splits_are_those_that_s3prl_evaluates(expert_folder, listed: str, dev, test):
    folder = expert_folder(config=CONFIG.replace("[dev]", listed))
    block = tones_config([f"s3prl:{folder}"])["s3prl:tones"]
    assert (block["dev_splits"], block["test_splits"]) == (dev, test)


def test_its_settings_are_overridden_like_others(expert_folder):
    word = f"s3prl:{expert_folder()}"
    text = "s3prl:tones.downstream_expert.corpus.size=7,,s3prl:tones.test_splits=[train]"
    block = tones_config([word], overrides=text)["s3prl:tones"]
    assert block["downstream_expert"]["corpus"] == {"size": 7, "num_workers": 0}
    assert block["test_splits"] == ["train"]
    with pytest.raises(UserError) as caught:
        tones_config([word], overrides="s3prl:tones.downstream_expert.corpus.siz=7")
    assert "s3prl:tones.downstream_expert.corpus.siz" in str(caught.value)
    with pytest.raises(UserError) as caught:
        tones_config([word], overrides="s3prl:tones.downstream_expert.corpus.size=many")
    assert "s3prl:tones.downstream_expert.corpus.size" in str(caught.value)


def test_another_config_file_is_named_in_the_block(expert_folder, tmp_path, monkeypatch):
    folder = expert_folder()
    (tmp_path / "other.yaml").write_text(CONFIG.replace("size: 5", "size: 6"))
    monkeypatch.chdir(tmp_path)
    config = tones_config([f"s3prl:{folder}"], overrides="s3prl:tones.config=other.yaml")
    assert config["s3prl:tones"]["downstream_expert"]["corpus"]["size"] == 6
    assert config["s3prl:tones"]["config"] == str(tmp_path / "other.yaml")


def test_two_configs_of_one_expert_are_two_tasks(expert_folder):
    folder = expert_folder()
    words = parse_tasks(f"s3prl:a={folder},s3prl:b={folder}")
    config = tones_config(words, overrides="s3prl:b.downstream_expert.corpus.size=9")
    assert config["downstream"] == ["s3prl:a", "s3prl:b"]
    sizes = [config[name]["downstream_expert"]["corpus"]["size"] for name in config["downstream"]]
    assert sizes == [5, 9]


def test_a_built_config_can_be_built_again(expert_folder, tmp_path: Path):
    from s3prl_mtl.fileio.yaml_files import write_yaml

    config = tones_config([f"s3prl:{expert_folder()}", "ks"], flags={"data": str(tmp_path)})
    write_yaml(config, tmp_path / "config.yaml")
    assert build_config(files=[tmp_path / "config.yaml"]) == config
    alone = build_config(files=[tmp_path / "config.yaml"], flags={"downstream": ["ks"]})
    assert list(resolve(alone).tasks) == ["ks"]
    (tmp_path / "mine" / "tones" / "config.yaml").unlink()
    assert (
        build_config(base=config, flags={"downstream": ["s3prl:tones"]})["s3prl:tones"]
        == (config["s3prl:tones"])
    )


def test_settings_may_come_without_a_config_file(expert_folder):
    folder = expert_folder(config=None)
    given = {"downstream_expert": {"corpus": {"size": 3, "num_workers": 0}}}
    config = tones_config([f"s3prl:{folder}"], flags={"s3prl:tones": given})
    assert config["s3prl:tones"]["config"] is None
    assert config["s3prl:tones"]["downstream_expert"] == given["downstream_expert"]


def test_a_class_is_loaded_by_its_spec(expert_folder):
    folder = expert_folder()
    assert load_task(f"s3prl:{folder}").__mro__[2].__module__.endswith("tones.expert")
    assert load_task("s3prl:tones", folder=str(folder)).folder == str(folder)
    assert task_defaults(f"s3prl:tones={folder}")["dev_splits"] == ["dev"]


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("s3prl:", "missing-option"),
        ("s3prl:name=", "missing-option"),
        ("s3prl:/nowhere/at/all", "file-missing"),
        ("s3prl:a.b=ctc", "invalid-name"),
    ],
)
def test_an_invalid_spec_is_refused(spec: str, code: str):
    with user_error(code, where=f"^-d {spec}$"):
        parse_spec(spec)


def test_a_folder_with_an_invalid_name_needs_another(expert_folder):
    folder = expert_folder("v1.5")
    with user_error("invalid-name", where=f"-d s3prl:{folder}", fix=r"-d s3prl:NAME=.*v1\.5"):
        parse_spec(f"s3prl:{folder}")
    assert parse_spec(f"s3prl:new={folder}").folder == str(folder)


@pytest.mark.parametrize("name", ["", "nobody="])
def test_a_config_file_without_an_expert_is_refused(tmp_path: Path, name: str):
    (tmp_path / "lonely.yaml").write_text(CONFIG)
    with user_error("file-missing", where=rf"-d s3prl:{name}.*lonely\.yaml") as caught:
        parse_spec(f"s3prl:{name}{tmp_path / 'lonely.yaml'}")
    assert "expert.py" in caught.value.what and repr(name.rstrip("=")) in f"''{caught.value.what}"


def test_a_config_file_elsewhere_may_be_for_an_installed_expert(tmp_path, monkeypatch):
    path = tmp_path / "lonely.yaml"
    path.write_text(CONFIG)
    word = ExpertSpec("s3prl:example", "example", str(path))
    assert parse_spec(f"s3prl:example={path}") == word
    assert parse_spec(str(word)) == word
    monkeypatch.chdir(tmp_path)
    assert parse_spec("s3prl:example=lonely.yaml") == word


def advice(error: UserError) -> list[str]:
    """The flags in the remedy of an error."""
    found = re.findall(r'-[do] [^ ]+(?: -o "[^"]+")?|-o "[^"]+"', str(error.fix))
    return [flags.rstrip(".,") for flags in found]


def follow(flags: str, words: list[str], **placeholders: str) -> dict:
    """The config for specs and the flags of a remedy, with its placeholders filled in."""
    for placeholder, value in placeholders.items():
        flags = flags.replace(placeholder, value)
    parts = shlex.split(flags)
    given = dict(zip(parts[::2], parts[1::2], strict=True))
    words = parse_tasks(given["-d"]) if "-d" in given else words
    return tones_config(words, overrides=given.get("-o"))


def test_the_advice_for_an_installed_expert_without_settings_works(tmp_path: Path):
    with user_error("missing-option", where=r"^s3prl:example\.config$") as error:
        tones_config(["s3prl:example"])
    (tmp_path / "some.yaml").write_text(CONFIG)
    override, word = advice(error.value)
    for flags in (override, word):
        config = follow(flags, ["s3prl:example"], FILE=str(tmp_path / "some.yaml"))
        assert config["s3prl:example"]["downstream_expert"]["corpus"]["size"] == 5
        assert config["s3prl:example"]["folder"] == "example"


def test_the_advice_for_an_expert_elsewhere_without_settings_works(expert_folder, tmp_path):
    folder = expert_folder(config=None)
    with user_error("missing-option", where=r"^s3prl:tones\.config$") as error:
        tones_config([f"s3prl:{folder}"])
    (tmp_path / "some.yaml").write_text(CONFIG)
    (flags,) = advice(error.value)
    config = follow(flags, [f"s3prl:{folder}"], FILE=str(tmp_path / "some.yaml"))
    assert config["s3prl:tones"]["config"] == str(tmp_path / "some.yaml")
    (folder / "configs").mkdir()
    (folder / "configs" / "small.yaml").write_text(CONFIG)
    with user_error("missing-option", fix=r"configs/small\.yaml") as error:
        tones_config([f"s3prl:{folder}"])
    (flags,) = advice(error.value)
    config = follow(flags, [])
    assert config["s3prl:tones"]["config"] == str(folder / "configs" / "small.yaml")


def test_the_advice_for_a_config_file_without_an_expert_works(expert_folder, tmp_path: Path):
    folder = expert_folder(config=None)
    (tmp_path / "lonely.yaml").write_text(CONFIG)
    with pytest.raises(UserError) as error:
        parse_spec(f"s3prl:{tmp_path / 'lonely.yaml'}")
    installed, elsewhere = advice(error.value)
    assert follow(installed, [], EXPERT="example")["s3prl:example"]["folder"] == "example"
    block = follow(elsewhere, [], NAME="my", FOLDER=str(folder))["s3prl:my"]
    assert (block["folder"], block["config"]) == (str(folder), str(tmp_path / "lonely.yaml"))


@pytest.mark.parametrize("with_file", [False, True])
def test_the_advice_for_two_tasks_of_one_name_works(
    expert_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_file: bool
):
    plain, other = expert_folder("plain"), expert_folder("my.task")
    monkeypatch.chdir(tmp_path)
    second = "./mine/my.task/config.yaml" if with_file else "./mine/my.task"
    words = parse_tasks(f"s3prl:./mine/plain,s3prl:plain={second}")
    with user_error("duplicate-name", where="-d") as error:
        tones_config(words)
    assert "'s3prl:plain'" in error.value.what
    (flags,) = advice(error.value)
    config = follow(f"-d s3prl:./mine/plain,{flags.removeprefix('-d ')}", [], NAME="other")
    assert config["downstream"] == ["s3prl:plain", "s3prl:other"]
    assert config["s3prl:plain"]["folder"] == str(plain)
    assert config["s3prl:other"]["folder"] == str(other)


def test_the_advice_for_a_folder_with_an_invalid_name_works(expert_folder):
    folder = expert_folder("v1.5")
    with pytest.raises(UserError) as error:
        parse_spec(f"s3prl:{folder}")
    (flags,) = advice(error.value)
    assert follow(flags, [], NAME="new")["s3prl:new"]["folder"] == str(folder)


def test_two_folders_of_one_name_need_another(expert_folder, tmp_path: Path):
    one = expert_folder()
    two = tmp_path / "other" / "tones"
    two.parent.mkdir()
    one.rename(two)
    words = [f"s3prl:{expert_folder('again').parent / 'again'}", f"s3prl:again={two}"]
    with user_error("duplicate-name", where="-d", fix=f"s3prl:NAME={two}"):
        tones_config(words)


def test_a_missing_config_file_is_an_error_with_a_remedy(expert_folder):
    with user_error("missing-option", where="s3prl:emotion", fix="s3prl/downstream/emotion"):
        tones_config(["s3prl:emotion"])
    folder = expert_folder(config=None)
    (folder / "snips.yaml").write_text(CONFIG)
    with user_error("missing-option", fix=str(folder / "snips.yaml")) as caught:
        tones_config([f"s3prl:{folder}"])
    assert str(folder / "config.yaml") in caught.value.what


def test_a_config_file_without_settings_of_an_expert_is_refused(expert_folder):
    folder = expert_folder(config="runner: {}\n")
    with user_error("file-malformed", where=r"^s3prl:tones\.config$") as caught:
        tones_config([f"s3prl:{folder}"])
    assert "`downstream_expert`" in caught.value.what


def test_a_folder_with_dots_and_blanks_in_its_name_is_imported(expert_folder):
    folder = expert_folder("my task v1.2")
    with pytest.raises(UserError) as error:
        parse_spec(f"s3prl:{folder}")
    _, word = shlex.split(str(error.value.fix).partition(": ")[2].rstrip("."))
    config = tones_config(parse_tasks(word.replace("NAME", "mine")))
    assert config["s3prl:mine"]["folder"] == str(folder)
    assert load_task("s3prl:mine", folder=str(folder)).folder == str(folder)


def test_folders_that_differ_by_a_dot_are_two_experts(expert_folder):
    mark = "\nDownstreamExpert.mark = {!r}\n"
    places = [expert_folder(name, EXPERT + mark.format(name)) for name in ("a.b", "a_b")]
    experts = [load_task("s3prl:x", folder=str(place)) for place in places]
    assert [expert.mark for expert in experts] == ["a.b", "a_b"]


def test_a_path_with_a_comma_is_given_in_a_file_as_the_error_says(expert_folder, tmp_path: Path):
    folder = expert_folder("one,two")
    with user_error("file-missing", fix=r"s3prl:NAME.*folder: PATH.*-d s3prl:NAME"):
        parse_tasks(f"s3prl:{folder}")
    (tmp_path / "own.yaml").write_text(f'"s3prl:mine": {{folder: "{folder}"}}\n')
    config = tones_config(["s3prl:mine"], files=[tmp_path / "own.yaml"])
    assert config["s3prl:mine"]["downstream_expert"]["corpus"]["size"] == 5


def test_an_override_for_a_task_outside_the_run_is_refused(expert_folder):
    word = f"s3prl:{expert_folder()}"
    override = "s3prl:tnoes.downstream_expert.corpus.size=4"
    with user_error("unknown-name", where="s3prl:tnoes", fix="'s3prl:tones'"):
        tones_config([word], overrides=override)
    with user_error("unknown-name", where="s3prl:tnoes", fix="-d"):
        build_config(flags={"downstream": ["ks"], "data": "/d"}, overrides=override)
    right = tones_config([word], overrides=override.replace("tnoes", "tones"))
    assert right["s3prl:tones"]["downstream_expert"]["corpus"]["size"] == 4


def test_a_block_of_a_file_for_no_task_is_logged(expert_folder, tmp_path, caplog):
    word = f"s3prl:{expert_folder()}"
    path = tmp_path / "own.yaml"
    path.write_text('"s3prl:tnoes": {downstream_expert: {corpus: {size: 4}}}\n')
    config = tones_config([word], files=[path])
    assert config["s3prl:tones"]["downstream_expert"]["corpus"]["size"] == 5
    assert [r for r in caplog.records if "'s3prl:tnoes'" in r.getMessage()]
