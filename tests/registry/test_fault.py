"""An error in the code of a plugin is attributed to its package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from s3prl_mtl.cli.main import main
from s3prl_mtl.errors import error_summary
from s3prl_mtl.registry.fault import frames_of, plugin_at_fault

ROOT = Path(__file__).parents[2]

TASK = """
import json
from s3prl_mtl import ClassificationExpert
from downstream_plugins.ks.corpus import SpeechCommands


class Expert(ClassificationExpert):
    name = "bad"
    corpus_type = SpeechCommands

    def target(self, labels):
        return HERE
"""


@pytest.fixture
def bad_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a package with a task that evaluates this for the target of an utterance."""

    def install(target: str) -> Path:
        site = tmp_path / "site"
        module = site / "bad_task"
        module.mkdir(parents=True)
        (module / "__init__.py").write_text(TASK.replace("HERE", target))
        config = (ROOT / "downstream_plugins" / "ks" / "config.yaml").read_text()
        (module / "config.yaml").write_text(config)
        metadata = site / "bad_words-0.3.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-words\nVersion: 0.3\n")
        (metadata / "entry_points.txt").write_text("[s3prl_mtl.tasks]\nbad = bad_task:Expert\n")
        monkeypatch.syspath_prepend(str(site))
        return module / "__init__.py"

    yield install
    sys.modules.pop("bad_task", None)


@pytest.mark.parametrize(
    ("target", "summary"),
    [
        ("labels['wrod']", "KeyError: 'wrod'"),
        ("json.loads(labels['class'])", "JSONDecodeError: Expecting value"),
    ],
)
def test_an_error_in_a_target_names_the_package_and_the_line(
    target: str,
    summary: str,
    bad_task,
    tiny_corpus: Path,
    manifest_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    path = bad_task(target)
    flags = ["-u", "hubert_tiny", "-d", "bad", "--data", str(tiny_corpus), "--steps", "1"]
    places = ["-p", str(tmp_path / "run"), "--cache_dir", str(manifest_cache), "--device", "cpu"]
    assert main([*flags, *places]) == 1
    shown = capsys.readouterr().err
    assert "bad-words 0.3" in shown and summary in shown
    assert f"{path}, line 12, in target" in shown
    assert "Traceback" not in shown


def test_an_error_outside_plugins_is_attributed_to_none(bad_task):
    bad_task("0")
    with pytest.raises(ZeroDivisionError) as error:
        _ = 1 / 0
    assert plugin_at_fault(error.value) is None


def test_an_error_in_a_loader_worker_has_its_frames_there(bad_task):
    path = bad_task("labels['wrod']")
    from torch.utils.data import DataLoader

    __import__("bad_task")
    expert = sys.modules["bad_task"].Expert.__new__(sys.modules["bad_task"].Expert)
    loader = DataLoader([{}], num_workers=1, collate_fn=lambda items: expert.target(items[0]))
    loader.multiprocessing_context = "fork"
    with pytest.raises(KeyError) as error:
        next(iter(loader))
    found = plugin_at_fault(error.value)
    assert found is not None
    assert (found[0].package, found[1].path, found[1].line) == ("bad-words", str(path), 12)
    assert error_summary(error.value) == "KeyError: 'wrod'"
    assert str(frames_of(error.value)[-1]) == "bad_task/__init__.py, line 12, in target"


def test_a_broken_pipe_between_processes_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    def lose_a_worker(arguments: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("s3prl_mtl.cli.upstreams.run", lose_a_worker)
    assert main(["upstreams"]) == 1
