"""A run keeps its tasks when packages with tasks of the same names are installed or removed."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

import s3prl_mtl
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.cli.main import main
from s3prl_mtl.config import build_config, parse_tasks, resolve
from s3prl_mtl.errors import UserError
from s3prl_mtl.export.command import export
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.registry.task_names import find_in_run, find_same_task
from s3prl_mtl.tracking.recorder import read_results
from s3prl_mtl.tracking.results_table import results_table
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.comparison import assert_same
from tests.mistakes import user_error

SMALL_HEADS = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"

# The tasks of the other package differ in their package and in what `predict` gives.
RIVAL = """
from downstream_plugins.ks import KeywordSpotting
from downstream_plugins.sv import SpeakerVerification


class Keywords(KeywordSpotting):
    def predict(self, features, lengths_samples):
        return [{"class": "rival", "probability": 1.0} for _ in features]


class Speakers(SpeakerVerification):
    pass
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `rival-tasks`, which has a task `ks`."""
    folder = tmp_path_factory.mktemp("site")
    module = folder / "rival_tasks"
    metadata = folder / "rival_tasks-1.2.dist-info"
    module.mkdir()
    metadata.mkdir()
    (module / "__init__.py").write_text(RIVAL)
    source = Path(sys.modules[load_task("ks").__module__].__file__ or "")
    shutil.copy(source.parent / "config.yaml", module)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rival-tasks\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text("[s3prl_mtl.tasks]\nks = rival_tasks:Keywords\n")
    return folder


@pytest.fixture
def rival(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Install the other package; the value uninstalls it."""
    monkeypatch.syspath_prepend(str(site))
    yield lambda: sys.path.remove(str(site))
    sys.modules.pop("rival_tasks", None)


def settings_of(corpus: Path, cache: Path, *tasks: str) -> dict:
    return {
        "downstream": list(tasks),
        "data": str(corpus),
        "cache_dir": str(cache),
        "upstream.name": "hubert_tiny",
        "device": "cpu",
        "scheduler": None,
        "runner.total_steps": 1,
        "runner.test_first": False,
        "runner.test_last": False,
    }


@pytest.fixture
def begin(tiny_corpus: Path, manifest_cache: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train tasks for one step with the packages installed now; gives the folder of the run."""

    def _begin(*tasks: str) -> Path:
        config = build_config([SMALL_HEADS], settings_of(tiny_corpus, manifest_cache, *tasks))
        folder = tmp_path / "begun"
        MultiTaskRunner(config, folder).train()
        return folder

    return _begin


@pytest.fixture(scope="module")
def plain_run(tiny_corpus: Path, manifest_cache: Path, tmp_path_factory) -> Path:
    """A run of ks and sv, made without the other package."""
    folder = tmp_path_factory.mktemp("plain")
    config = build_config([SMALL_HEADS], settings_of(tiny_corpus, manifest_cache, "ks", "sv"))
    MultiTaskRunner(config, folder).train()
    return folder


@pytest.fixture
def run(plain_run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(plain_run, tmp_path / "run"))


def head_of(run: Path, task: str = "ks") -> dict[str, torch.Tensor]:
    return dict(checkpoints.load_newest(run)[0].tasks[task].head)


def without_package(run: Path) -> None:
    """Remove the packages of the tasks from the checkpoint of a run."""
    (path,) = checkpoints.states_files(run)
    saved = checkpoints.load(path)
    for task in saved.tasks:
        del saved.config[task]["package"]
    checkpoints.save(saved, path)


def test_a_run_records_the_packages_of_its_tasks(plain_run: Path):
    written = yaml.safe_load((plain_run / "config.yaml").read_text())
    saved = checkpoints.load_newest(plain_run)[0].config
    for config in (written, saved):
        assert [config[task]["package"] for task in ("ks", "sv")] == ["s3prl-mtl", "s3prl-mtl"]


def test_another_package_does_not_change_a_resumed_run(
    run: Path, tmp_path: Path, rival: Callable[[], None]
):
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    assert main(["-e", str(run), "--steps", "2"]) == 0
    rival()
    assert main(["-e", str(alone), "--steps", "2"]) == 0
    beside, wanted = (checkpoints.load_newest(folder)[0] for folder in (run, alone))
    assert beside.step == wanted.step == 2
    for part in ("Upstream", "Featurizer", "Tasks", "Optimizer"):
        assert_same(beside.to_dict()[part], wanted.to_dict()[part], part)
    assert beside.config["ks"]["package"] == "s3prl-mtl"


@pytest.mark.parametrize("word", ["ks,sv", "s3prl-mtl:ks,asv", "S3PRL_MTL:ks,sv"])
def test_a_run_is_resumed_by_any_spec_of_its_tasks(run: Path, rival, word: str):
    words = ["-u", "hubert_tiny", "-d", word, "-c", str(SMALL_HEADS), "-o", "scheduler=null"]
    assert main([*words, "-a", "-p", str(run), "--steps", "2", "--device", "cpu"]) == 0
    assert list(checkpoints.load(run / "states-2.ckpt").tasks) == ["ks", "sv"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-d", "ks"],
        ["-d", "s3prl-mtl:ks"],
        ["-t", "ks:test"],
        ["-t", "s3prl-mtl:ks:test"],
        ["-d", "s3prl-mtl:ks", "-t", "ks:test"],
    ],
)
def test_a_run_is_evaluated_by_any_spec_of_its_tasks(
    run: Path, tmp_path: Path, rival, words: list[str]
):
    assert main(["-m", "evaluate", "-e", str(run), *words, "--device", "cpu"]) == 0
    assert "acc" in read_results(run)["ks"]["test"]
    elsewhere = tmp_path / "elsewhere"
    assert main(["-m", "evaluate", "-e", str(run), *words, "-p", str(elsewhere)]) == 0
    assert read_results(elsewhere)["ks"]["test"] == read_results(run)["ks"]["test"]


def test_a_task_of_another_package_is_not_in_the_run(run: Path, rival, capsys):
    assert main(["-m", "evaluate", "-e", str(run), "-d", "rival-tasks:ks", "--verbose"]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "'rival-tasks:ks'" in shown and re.search(r"\bks\b[^,]*\bs3prl-mtl, sv\b", shown)
    with user_error("unknown-name", where=str(run), fix=r"\bks\b.*\bs3prl-mtl\b"):
        s3prl_mtl.load(run, ["rival-tasks:ks"])


def test_a_run_predicts_by_any_spec_of_its_tasks(run: Path, tiny_corpus: Path, rival):
    wav = str(next(tiny_corpus.rglob("*.wav")))
    for words in (["ks", "sv"], ["s3prl-mtl:ks", "asv"]):
        trained = s3prl_mtl.load(run, words, device="cpu")
        assert trained.tasks == ["ks", "sv"]
        (answer,) = trained.predict([wav], words)
        assert answer["ks"]["class"] in trained.labels["ks"]["classes"]
        assert trained.verify(wav, wav, words[1]) == pytest.approx(1.0, abs=1e-5)
    assert main(["predict", str(run), "--task", "s3prl-mtl:ks,asv", "--against", wav, wav]) == 0


def test_the_table_of_a_run_uses_the_metrics_of_its_packages(run: Path, rival):
    titles = list(results_table(run, everything=True).columns[2].cells)
    assert any("accuracy" in str(title) for title in titles)


def test_init_ckpt_takes_heads_of_the_same_package_only(
    run: Path, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, rival, caplog
):
    wanted = head_of(run)
    tasks = ["s3prl-mtl:ks", "rival-tasks:ks"]
    flags = settings_of(tiny_corpus, manifest_cache, *tasks) | {"init_ckpt": str(run), "seed": 9}
    block = yaml.safe_load(SMALL_HEADS.read_text())["ks"]
    blocks = tmp_path / "blocks.yaml"
    blocks.write_text(yaml.safe_dump(dict.fromkeys(tasks, block)))
    with caplog.at_level(logging.WARNING):
        started = MultiTaskRunner(build_config([blocks], flags), tmp_path / "new").state()
    assert started is not None
    ours, other = (started.tasks[task].head for task in tasks)
    for name in wanted.keys() - {"best_score"}:
        assert torch.equal(ours[name], wanted[name]), name
    assert not torch.equal(other["projector.weight"], wanted["projector.weight"])
    (message,) = (r.getMessage() for r in caplog.records if "rival-tasks" in r.getMessage())
    assert "ks of package s3prl-mtl" in message


def test_heads_of_single_task_runs_go_by_their_plain_names(
    run: Path, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, rival
):
    wanted = head_of(run)
    path = tmp_path / "heads" / "ks" / "hubert_tiny_ks.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"Downstream": wanted}, path)
    flags = settings_of(tiny_corpus, manifest_cache, "rival-tasks:ks")
    flags |= {"init_ckpt": str(tmp_path / "heads"), "seed": 9}
    started = MultiTaskRunner(build_config([SMALL_HEADS], flags), tmp_path / "new").state()
    assert started is not None
    head = started.tasks["rival-tasks:ks"].head
    assert torch.equal(head["projector.weight"], wanted["projector.weight"])


def test_a_run_is_exported_with_its_heads(run: Path, tmp_path: Path, rival):
    export(run, "s3prl", tmp_path / "out")
    written = checkpoints.read_tensors(tmp_path / "out" / "ks" / "hubert_tiny_ks.ckpt")
    assert_same(dict(written["Downstream"]), head_of(run))


def test_a_run_started_beside_the_other_package_resumes_without_it(
    begin, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, rival
):
    folder = begin("s3prl-mtl:ks")
    wanted = head_of(folder, "s3prl-mtl:ks")
    rival()
    wav = str(next(tiny_corpus.rglob("*.wav")))
    trained = s3prl_mtl.load(folder, ["ks"], device="cpu")
    assert trained.tasks == ["s3prl-mtl:ks"]
    assert trained.predict([wav], ["ks"])[0]["s3prl-mtl:ks"]["class"] != "rival"
    assert main(["-m", "evaluate", "-e", str(folder), "-t", "ks:test"]) == 0
    assert main(["-e", str(folder), "-d", "ks", "--steps", "2"]) == 0
    assert list(checkpoints.load(folder / "states-2.ckpt").tasks) == ["s3prl-mtl:ks"]
    again = build_config([folder / "config.yaml"])
    assert again["downstream"] == ["s3prl-mtl:ks"]
    first = str(checkpoints.states_files(folder)[0])
    flags = settings_of(tiny_corpus, manifest_cache, "ks") | {"init_ckpt": first, "seed": 9}
    started = MultiTaskRunner(build_config([SMALL_HEADS], flags), tmp_path / "new").state()
    assert started is not None
    head = started.tasks["ks"].head
    saved = checkpoints.load(Path(first)).tasks["s3prl-mtl:ks"].head
    assert torch.equal(head["projector.weight"], saved["projector.weight"])
    assert head["projector.weight"].shape == wanted["projector.weight"].shape


def test_a_task_without_its_package_is_refused_and_the_others_work(
    begin, tiny_corpus: Path, rival, capsys
):
    folder = begin("rival-tasks:ks", "sv")
    wav = str(next(tiny_corpus.rglob("*.wav")))
    (answer,) = s3prl_mtl.load(folder, ["ks"], device="cpu").predict([wav])
    assert answer["rival-tasks:ks"]["class"] == "rival"
    rival()
    with user_error("missing-package", where=r"^ks\.package", fix="rival-tasks") as caught:
        s3prl_mtl.load(folder)
    assert "rival-tasks" in caught.value.what and "s3prl-mtl 0" in caught.value.what
    for words in (["-m", "evaluate", "-e", str(folder)], ["-e", str(folder), "--steps", "2"]):
        capsys.readouterr()
        assert main([*words, "--verbose"]) == 2
        shown = capsys.readouterr().err
        assert "[missing-package]" in shown and "rival-tasks" in shown
    assert s3prl_mtl.load(folder, ["sv"], device="cpu").tasks == ["sv"]
    assert main(["-m", "evaluate", "-e", str(folder), "-t", "sv:test"]) == 0
    assert main(["-m", "evaluate", "-e", str(folder), "-d", "s3prl-mtl:ks"]) == 2
    assert re.search(r"\bks\b[^,]*\brival-tasks\b", " ".join(capsys.readouterr().err.split()))


def test_a_checkpoint_without_packages_is_used_if_one_package_has_the_task(
    run: Path,
):
    without_package(run)
    assert s3prl_mtl.load(run, device="cpu").tasks == ["ks", "sv"]
    assert main(["-e", str(run), "--steps", "2"]) == 0
    assert checkpoints.load(run / "states-2.ckpt").config["ks"]["package"] == "s3prl-mtl"


def test_a_checkpoint_without_packages_may_be_ambiguous(run: Path, rival, capsys):
    without_package(run)
    with user_error("ambiguous-name", where=r"^ks\b.*\bcheckpoint\b", fix="s3prl-mtl:ks"):
        s3prl_mtl.load(run, device="cpu")
    for words in (["-m", "evaluate", "-e", str(run)], ["-e", str(run), "--steps", "2"]):
        assert main([*words, "--verbose"]) == 2
        assert "[ambiguous-name]" in capsys.readouterr().err
    assert s3prl_mtl.load(run, ["s3prl-mtl:ks"], device="cpu").tasks == ["ks"]
    assert main(["-m", "evaluate", "-e", str(run), "-t", "s3prl-mtl:ks:test"]) == 0
    assert main(["-e", str(run), "-d", "s3prl-mtl:ks,sv", "--steps", "2"]) == 0
    saved = checkpoints.load(run / "states-2.ckpt")
    assert list(saved.tasks) == ["ks", "sv"]
    assert saved.config["ks"]["package"] == "s3prl-mtl"


def configured(tmp_path: Path, text: str, *tasks: str, **flags) -> dict:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return build_config([path], {"downstream": list(tasks), "data": "/corpora", **flags})


def test_a_block_chooses_the_package_of_its_task(tmp_path: Path, rival):
    for package in ("rival-tasks", "s3prl-mtl"):
        config = configured(tmp_path, f"ks: {{package: {package}}}", "ks")
        assert config["downstream"] == ["ks"]
        assert config["ks"]["package"] == package
    config = configured(tmp_path, "ks: {package: rival_tasks}", "ks", "s3prl-mtl:ks")
    assert config["downstream"] == ["ks", "s3prl-mtl:ks"]
    assert config["ks"]["package"] == "rival-tasks"
    assert config["s3prl-mtl:ks"]["package"] == "s3prl-mtl"


def test_a_block_with_a_plain_name_belongs_to_the_only_task_with_it(tmp_path: Path, rival):
    text = "ks: {downstream_expert: {datarc: {num_workers: 0, train_batch_size: 3}}}"
    config = configured(tmp_path, text, "s3prl-mtl:ks", "asr")
    block = resolve(config).tasks["s3prl-mtl:ks"]
    assert block.downstream_expert["datarc"]["train_batch_size"] == 3
    assert "ks" not in config
    other = configured(tmp_path, text.replace("{", "{package: rival-tasks, ", 1), "s3prl-mtl:ks")
    assert other["s3prl-mtl:ks"]["downstream_expert"]["datarc"]["train_batch_size"] != 3
    with user_error("ambiguous-name", where="^ks in ", fix="s3prl-mtl:ks.*rival-tasks:ks"):
        configured(tmp_path, text, "s3prl-mtl:ks", "rival-tasks:ks")


@pytest.mark.parametrize(("package", "code"), [("nobody", "missing-package"), ("3", "wrong-type")])
def test_an_invalid_package_is_refused(tmp_path: Path, package: str, code: str):
    with user_error(code, where=r"^ks\.package") as caught:
        configured(tmp_path, f"ks: {{package: {package}}}", "ks")
    assert package in caught.value.what


def test_the_package_of_a_task_outside_the_run_is_not_checked(tmp_path: Path):
    assert configured(tmp_path, "asr: {package: nobody}", "ks")["downstream"] == ["ks"]


def test_an_unchecked_block_is_logged_once_by_every_build(tmp_path: Path, rival, caplog):
    misspelt = "ks: {train_spilt: train}"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            caplog.clear()
            assert "ks" not in configured(tmp_path, misspelt, "asr")
            (message,) = (r.getMessage() for r in caplog.records if "'ks'" in r.getMessage())
            assert "s3prl-mtl" in message and "rival-tasks" in message
    rival()
    with pytest.raises(UserError) as caught:
        configured(tmp_path, misspelt, "asr")
    assert "ks.train_spilt" in str(caught.value)


def test_a_run_does_not_change_the_package_of_a_task(run: Path, rival, capsys):
    words = ["-e", str(run), "--steps", "2", "-o", "ks.package=rival-tasks", "--verbose"]
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert "[conflicting-options]" in shown and "ks.package" in shown


def test_an_alias_belongs_to_its_own_package(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = Path(shutil.copytree(site, tmp_path / "copy"))
    entries = copy / "rival_tasks-1.2.dist-info" / "entry_points.txt"
    entries.write_text(
        "[s3prl_mtl.tasks]\nsv = rival_tasks:Speakers\nvoices = rival_tasks:Speakers\n"
    )
    monkeypatch.syspath_prepend(str(copy))
    assert parse_tasks("asv") == ["s3prl-mtl:sv"]
    assert parse_tasks("voices") == ["rival-tasks:sv"]
    assert find_in_run("asv", {"sv": "s3prl-mtl"}) == "sv"
    assert find_in_run("asv", {"sv": "rival-tasks"}) is None
    assert find_in_run("voices", {"sv": "rival-tasks"}) == "sv"
    sys.modules.pop("rival_tasks", None)


def test_a_spec_that_fits_several_tasks_of_a_run_is_refused():
    packages = {"a:ks": "a", "b:ks": "b"}
    with user_error("ambiguous-name", where="ks", fix="'a:ks' or 'b:ks'"):
        find_in_run("ks", packages)
    assert find_in_run("b:ks", packages) == "b:ks"
    assert find_in_run("c:ks", packages) is None
    assert find_in_run("c:ks", {"ks": None}) == "ks"
    assert find_same_task("ks", "b", {"ks": None, "b:ks": "b"}) == "b:ks"
    assert find_same_task("ks", "c", packages) is None
    assert find_same_task("s3prl:ks", None, {"ks": None}) is None


def test_a_section_set_to_null_is_set_again_from_its_defaults(tmp_path: Path):
    base = configured(tmp_path, "scheduler: null", "ks")
    path = tmp_path / "on.yaml"
    path.write_text("scheduler: {num_warmup_steps: 3}")
    config = build_config([path], base=base)
    assert config["scheduler"]["num_warmup_steps"] == 3
    assert config["scheduler"]["name"] == "linear_schedule_with_warmup"
