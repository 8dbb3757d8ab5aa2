"""`tasks` and `upstreams` list everything that is installed, and what is broken."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from s3prl_mtl import api
from s3prl_mtl.api import listings
from s3prl_mtl.cli.main import main
from s3prl_mtl.registry.plugins import discover_tasks
from s3prl_mtl.tracking.console import OUTPUT

# The smallest class that a run can use.
MINIMAL = """
from torch import nn


class DownstreamExpert(nn.Module):
    def get_dataloader(self, split): ...
    def forward(self, split, features, records): ...
    def log_records(self, split, records, logger, global_step): ...
"""
OURS = """
from s3prl_mtl import ClassificationExpert, Metric
from s3prl_mtl.data import Corpus


class Nowhere(Corpus):
    title = "Nowhere"


class DownstreamExpert(ClassificationExpert):
    name = "tones"
    corpus_type = Nowhere
"""
SETTINGS = "downstream_expert: {datarc: {}}\n"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OUTPUT, "width", 200)
    monkeypatch.delenv("SUPERB_DATA", raising=False)


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch):
    """List only `ks` and the tasks of other packages."""
    monkeypatch.setattr(
        listings,
        "discover_tasks",
        lambda: {
            n: p for n, p in discover_tasks().items() if n == "ks" or p.package != "s3prl-mtl"
        },
    )


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a table by its first column."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells if row}


def test_the_built_in_tasks_are_listed_with_package_metrics_and_corpus(capsys, tiny_corpus: Path):
    assert main(["tasks", "--data", str(tiny_corpus)]) == 0
    found = rows(capsys.readouterr().out)
    assert found["asr"] == ["s3prl-mtl 0.1.0", "WER", "LibriSpeech", "present", "ok"]
    assert found["sf"][1] == "slot type F1, slot value CER"
    assert found["asv"][4] == "alias of sv"
    assert {row[3] for name, row in found.items() if name != "ssl"} == {"present"}
    assert found["ssl"][3] == "missing", "labels come from s3prl-mtl cluster"


def test_missing_data_is_listed_with_its_path(capsys, tmp_path: Path):
    assert main(["tasks", "--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert rows(shown)["ks"][3] == "missing"
    line = f"Speech Commands v0.01 (ks): {tmp_path}/speech_commands_v0.01 does not exist"
    assert f"{line} (1 more with --all)\n" in shown
    assert shown.count("VoxCeleb1 (asv, sid, sv): ") == 1
    assert main(["tasks", "--data", str(tmp_path), "--all"]) == 0
    assert f"ks: {tmp_path}/speech_commands_v0.01 " in capsys.readouterr().out


def test_without_a_data_folder_the_flag_is_named_once(capsys):
    assert main(["tasks"]) == 0
    shown = capsys.readouterr().out
    assert rows(shown)["ks"][3] == "?"
    assert shown.count("--data") == 1


def test_a_broken_task_is_listed_with_its_error_beside_the_others(capsys, few_tasks, install):
    install("import no_such_module_anywhere\n", None)
    assert main(["tasks"]) == 0
    shown = capsys.readouterr().out
    assert rows(shown)["tones"] == ["tones 0.1", "", "", "", "broken"]
    assert "no_such_module_anywhere" in shown
    assert rows(shown)["ks"][4] == "ok"


def test_a_task_with_a_malformed_config_is_broken(capsys, few_tasks, install):
    install("class DownstreamExpert: pass\n", "a: [")
    assert main(["tasks"]) == 0
    assert rows(capsys.readouterr().out)["tones"][4] == "broken"


def test_a_task_without_metrics_or_corpus_is_listed(capsys, few_tasks, install):
    install(MINIMAL, None)
    assert main(["tasks"]) == 0
    shown = capsys.readouterr().out
    assert rows(shown)["tones"] == ["tones 0.1", "", "", "unknown", "ok"]


@pytest.mark.parametrize(
    ("source", "config", "named"),
    [
        ("class DownstreamExpert: pass\n", None, "torch.nn.Module"),
        (MINIMAL.replace("forward", "forwards"), None, "`forward`"),
        (MINIMAL.replace("log_records", "log"), None, "`log_records`"),
        (MINIMAL.replace("def get_dataloader", "def loader"), None, "`get_dataloader`"),
        (
            OURS.replace("    corpus_type = Nowhere\n", ""),
            SETTINGS,
            "`corpus_type` of",
        ),
        (OURS.replace('    name = "tones"\n', ""), SETTINGS, "`name` of tones_plugin."),
        (OURS + "    metrics = ('acc',)\n", SETTINGS, "'acc'"),
        (OURS + "    selected_by = 'rmse'\n", SETTINGS, "'rmse'"),
        (OURS, None, "tones_plugin/config.yaml"),
        (
            OURS.replace("ClassificationExpert", "TaskExpert"),
            SETTINGS,
            "`forward`, `build_head`, `measure`",
        ),
        (
            OURS.replace("ClassificationExpert", "TaskExpert")
            + "    metrics = __import__('s3prl_mtl').Metric('acc', 'higher', 'accuracy'),\n"
            "    def forward(self, split, features, targets, *, records): ...\n"
            "    def build_head(self): ...\n"
            "    def measure(self, split, records): ...\n",
            SETTINGS,
            "`target` nor `read`",
        ),
        (
            MINIMAL + "    metrics = property(lambda self: 1 / 0)\n"
            "    @property\n    def problems(self): ...\n"
            "DownstreamExpert.__abstractmethods__ = 3\n",
            None,
            "TypeError",
        ),
        (
            MINIMAL + "    @classmethod\n"
            "    def problems(cls, settings): raise SystemExit('no luck')\n",
            None,
            "SystemExit: no luck",
        ),
    ],
)
def test_a_task_that_cannot_be_used_is_broken_and_the_reason_named(
    source: str, config: str | None, named: str, capsys, few_tasks, install, tiny_corpus: Path
):
    install(source, config)
    assert main(["tasks", "--data", str(tiny_corpus)]) == 0
    shown = capsys.readouterr().out
    found = rows(shown)
    assert found["tones"] == ["tones 0.1", "", "", "", "broken"]
    assert found["ks"][3:] == ["present", "ok"]
    (paragraph,) = (line for line in shown.splitlines() if line.startswith("tones: "))
    assert named in paragraph and "of package tones 0.1" in paragraph


def test_metrics_of_another_class_are_listed(capsys, few_tasks, install):
    declared = "M = __import__('collections').namedtuple('M', 'name better title')\n"
    install(declared + MINIMAL + "    metrics = (M('a', 'lower', 'how bad'),)\n", None)
    assert main(["tasks"]) == 0
    assert rows(capsys.readouterr().out)["tones"][1] == "how bad"


def test_two_packages_with_one_name_are_both_listed(
    capsys, few_tasks, install, tmp_path: Path, monkeypatch
):
    install(MINIMAL, None)
    other = tmp_path / "other" / "bells-0.2.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: bells\nVersion: 0.2\n")
    (other / "entry_points.txt").write_text(
        "[s3prl_mtl.tasks]\ntones = tones_plugin:DownstreamExpert\n"
    )
    monkeypatch.syspath_prepend(str(other.parent))
    assert main(["tasks"]) == 0
    found = rows(capsys.readouterr().out)
    assert found["bells:tones"][0] == "bells 0.2" and found["tones:tones"][0] == "tones 0.1"
    assert found["bells:tones"][4].startswith("ok")


def test_the_records_of_tasks_say_what_the_table_says(few_tasks, install, tiny_corpus: Path):
    install("import no_such_module_anywhere\n", None)
    found = {task.name: task for task in api.tasks(data=tiny_corpus)}
    ks, tones = found["ks"], found["tones"]
    assert (ks.metrics, ks.corpus) == (("accuracy",), "Speech Commands v0.01")
    assert (ks.data, ks.problems, ks.state, ks.error) == ("present", (), "ok", None)
    assert tones.state == "broken" and "no_such_module_anywhere" in str(tones.error)
    more = {task.name for task in api.tasks(all=True)} - set(found)
    assert "s3prl:a2o-vc-vcc2020" in more and all(name.startswith("s3prl:") for name in more)


def test_the_records_of_balancers_say_what_must_be_given():
    found = {entry.name: entry for entry in api.balancers()}
    assert (found["fixed"].combines, found["fixed"].options) == ("losses", None)
    assert found["krum"].combines == "gradients" and found["krum"].required == ("n_byzantine",)
    assert found["krum"].options is not None and "gradients" in found["krum"].options


def test_upstreams_are_listed_with_their_descriptions(capsys, install):
    install(
        "def DownstreamExpert(): 'Listens to :func:`~a.b` and ``c``.'\n",
        None,
        "ears",
        "s3prl_mtl.upstreams",
    )
    install("1 / 0\n", None, "nose", "s3prl_mtl.upstreams")
    install("DownstreamExpert = 3\n", None, "mouth", "s3prl_mtl.upstreams")
    odd = "class Odd:\n    __doc__ = property(lambda self: exit('no'))\n    __call__ = print\n"
    install(odd + "DownstreamExpert = Odd()\n", None, "chin", "s3prl_mtl.upstreams")
    assert main(["upstreams"]) == 0
    shown = capsys.readouterr().out
    found = rows(shown)
    assert found["hubert_tiny"][0] == "s3prl-mtl 0.1.0" and found["hubert_tiny"][1]
    assert found["ears"] == ["ears 0.1", "Listens to a.b and c.", "ok"]
    assert found["nose"][2] == "broken" and "ZeroDivisionError" in shown
    assert found["chin"][2] == "broken" and "package chin 0.1: SystemExit: no" in shown
    assert found["mouth"][2] == "broken" and "'mouth'" in shown and "mouth_plugin" in shown


@pytest.mark.parametrize(
    ("command", "page", "names"),
    [
        ("tasks", "docs/s3prl-experts.md", "s3prl:a2o-vc-vcc2020, "),
        ("upstreams", "docs/upstreams.md", ", hubert, "),
    ],
)
def test_the_names_of_s3prl_are_listed_with_its_version_and_a_page(
    command: str, page: str, names: str, capsys
):
    assert main([command]) == 0
    short = capsys.readouterr().out
    assert names not in short and "--all" in short
    assert main([command, "--all"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if names in line]
    assert line.startswith(f"s3prl {version('s3prl')}'s ") and line.endswith(f"{page}.")
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    assert f"s3prl {version('s3prl')} " in text, "the table is of another version"


def test_a_checkout_of_s3prl_without_a_version_is_listed_without_one(
    capsys, monkeypatch: pytest.MonkeyPatch
):
    def nowhere(_name: str) -> str:
        raise PackageNotFoundError("s3prl")

    monkeypatch.setattr(listings, "version", nowhere)
    assert main(["tasks", "--all"]) == 0
    assert "\ns3prl's " in capsys.readouterr().out
