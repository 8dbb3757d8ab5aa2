"""Discovery of plugins, with real distributions installed beside ours."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from s3prl_mtl.config import build_config, parse_tasks
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import (
    discover_tasks,
    discover_upstreams,
    find_upstream,
    load_task,
    task_defaults,
)
from tests.mistakes import user_error

DEMO = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"
NINE = {"asr", "pr", "sf", "ks", "ic", "sid", "er", "sv", "sd"}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a distribution with one task into a folder of its own on the path."""

    def _install(package: str, task: str, source: str, config: str | None = None) -> None:
        folder = tmp_path / package
        module = folder / f"{package}_module"
        module.mkdir(parents=True)
        (module / "__init__.py").write_text(source)
        if config is not None:
            (module / "config.yaml").write_text(config)
        metadata = folder / f"{package}-1.2.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n"
        )
        (metadata / "entry_points.txt").write_text(
            f"[s3prl_mtl.tasks]\n{task} = {package}_module:Expert\n"
        )
        monkeypatch.syspath_prepend(str(folder))

    yield _install
    # Of this fixture only: torch has modules that end like these.
    for name in [name for name in sys.modules if name.endswith("_module") and "." not in name]:
        del sys.modules[name]


def test_the_nine_tasks_and_the_upstreams_are_found():
    assert set(discover_tasks()) >= NINE | {"asv"}
    assert set(discover_upstreams()) >= {
        "hubert",
        "hubert_base",
        "hubert_large_ll60k",
        "hubert_tiny",
    }


def test_asv_is_another_name_of_sv():
    assert parse_tasks("asv") == ["sv"]
    assert load_task("asv") is load_task("sv")


def test_a_third_party_task_is_found_and_loaded(install):
    install("nice", "langid", "class Expert:\n    pass\n", "downstream_expert: {size: 3}\n")
    assert discover_tasks()["langid"].package == "nice"
    assert load_task("langid").__name__ == "Expert"
    assert task_defaults("langid") == {"downstream_expert": {"size": 3}}


def test_a_package_that_is_installed_later_is_found(install, tmp_path: Path):
    install("early", "langid", "class Expert:\n    pass\n")
    assert "late" not in discover_tasks()
    install("late", "late", "class Expert:\n    pass\n")
    shutil.move(tmp_path / "late" / "late-1.2.dist-info", tmp_path / "early")
    sys.path.remove(str(tmp_path / "late"))
    assert discover_tasks()["late"].package == "late"
    shutil.rmtree(tmp_path / "early" / "late-1.2.dist-info")
    assert "late" not in discover_tasks()


def test_a_broken_plugin_is_named_and_breaks_no_other(install):
    install("broken", "oops", "import a_module_that_is_not_there\n")
    assert set(discover_tasks()) >= NINE | {"oops"}
    assert load_task("ks").__name__ == "KeywordSpotting"
    with user_error("plugin-broken", where=r"broken_module.* s3prl_mtl\.tasks") as caught:
        load_task("oops")
    for name in ("'oops'", "broken 1.2", "a_module_that_is_not"):
        assert name in caught.value.what


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with user_error("unknown-name", where="-d ars", fix="'asr'"):
        load_task("ars")


def test_two_packages_with_one_name_are_both_named_and_can_be_chosen(install):
    install("first", "clash", "class Expert:\n    who = 'first'\n")
    install("second", "clash", "class Expert:\n    who = 'second'\n")
    with user_error("ambiguous-name", where="-d", fix="first:clash.*second:clash|second.*first"):
        load_task("clash")
    assert load_task("second:clash").who == "second"
    assert load_task("clash", "first").who == load_task("first:clash", "first").who == "first"
    install("third", "clash", "class Expert:\n    who = 'third'\n")
    with user_error("ambiguous-name") as caught:
        load_task("clash")
    assert all(f"{name} 1.2" in caught.value.what for name in ("first", "second", "third"))


def test_a_package_without_the_task_is_refused(install):
    install("acme", "ks", "class Expert:\n    pass\n")
    for name, package in (("acme:ks", "s3prl-mtl"), ("s3prl-mtl:ks", "acme")):
        with user_error("conflicting-options", where=name, fix=f"{package}:ks"):
            load_task(name, package)
    with user_error("missing-package", where="package nope", fix="s3prl-mtl") as caught:
        load_task("er", package="nope")
    assert "'nope'" in caught.value.what and "'er'" in caught.value.what
    with user_error("conflicting-options", where="package nope"):
        load_task("s3prl:ctc", "nope")


def test_a_built_in_name_that_another_package_also_has_can_be_used(install, tmp_path):
    install("rival", "ks", "class Expert:\n    name = 'other'\n")
    assert "s3prl-mtl:ks" in parse_tasks("all")
    config = build_config([DEMO], flags={"downstream": ["asr"], "data": str(tmp_path)})
    assert config["downstream"] == ["asr"]
    assert load_task("s3prl-mtl:asr") is load_task("asr")


def test_defaults_that_are_not_yaml_are_reported_with_their_file(install, tmp_path: Path):
    install("bad", "badtask", "class Expert:\n    pass\n", "a: [1,\n")
    with pytest.raises(UserError) as caught:
        task_defaults("badtask")
    assert str(tmp_path / "bad" / "bad_module" / "config.yaml") in str(caught.value)


def test_a_plugin_that_exits_on_import_does_not_end_the_program(install):
    install("quitter", "quits", "raise SystemExit('no licence')\n")
    with user_error("plugin-broken", where="quitter_module") as caught:
        load_task("quits")
    assert "no licence" in caught.value.what


def test_an_entry_point_that_is_not_a_class_is_refused(install):
    install("odd", "oddtask", "Expert = 3\n")
    with user_error("plugin-broken", where="odd_module") as caught:
        load_task("oddtask")
    assert " int " in caught.value.what


def test_an_upstream_without_a_plugin_is_none():
    assert find_upstream("nobody_has_this") is None


def test_an_upstream_of_two_packages_is_ambiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rival_encoder.py").write_text("def hubert_tiny(ckpt):\n    return 'rival'\n")
    metadata = tmp_path / "rival-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(
        "[s3prl_mtl.upstreams]\nhubert_tiny = rival_encoder:hubert_tiny\n"
    )
    ours = find_upstream("hubert_tiny")
    assert find_upstream("s3prl-mtl:hubert_tiny") is ours
    monkeypatch.syspath_prepend(str(tmp_path))
    with user_error("ambiguous-name", where="-u", fix="rival:hubert_tiny"):
        find_upstream("hubert_tiny")
    assert find_upstream("s3prl-mtl:hubert_tiny") is ours
    assert find_upstream("rival:hubert_tiny")(None) == "rival"
