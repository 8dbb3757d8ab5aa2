"""check-task finds what is broken, and only that."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from s3prl_mtl.authoring import CONTRACT, Finding, check_task
from s3prl_mtl.cli.main import main
from s3prl_mtl.config import BUILT_IN_TASKS
from s3prl_mtl.errors import UserError

ROOT = Path(__file__).parents[2]

# An expert that keeps every line, without anything of this package.
WHOLE = """
import torch
from torch import nn
from torch.utils.data import DataLoader


class Metric:
    name, better, title, headline = "acc", "higher", "accuracy", True


class Tones:
    def __len__(self):
        return 7

    def __getitem__(self, i):
        time = torch.arange(4000 + 160 * i) / 16000
        return torch.sin(2 * torch.pi * (300 + 900 * (i % 2)) * time).numpy(), i % 2


def collate(items):
    return [wav for wav, _ in items], [label for _, label in items]


class DownstreamExpert(nn.Module):
    metrics = (Metric(),)

    def __init__(
        self, upstream_dim, upstream_rate, downstream_expert, expdir, labels=None, **kwargs
    ):
        super().__init__()
        self.batch = downstream_expert["datarc"]["batch"]
        self.labels = labels or {"tones": ["low", "high"]}
        self.linear = nn.Linear(upstream_dim, len(self.labels["tones"]))

    def get_dataloader(self, split, epoch=0):
        return DataLoader(Tones(), self.batch, shuffle=split == "train", collate_fn=collate)

    def scores(self, features):
        return self.linear(torch.stack([feature.mean(dim=0) for feature in features]))

    def forward(self, split, features, labels, records, **kwargs):
        logits = self.scores(features)
        labels = torch.tensor(labels, device=logits.device)
        records["right"] += (logits.argmax(-1) == labels).float().tolist()
        return nn.functional.cross_entropy(logits, labels)

    def predict(self, features, lengths_samples):
        return [{"tone": self.labels["tones"][int(i)]} for i in self.scores(features).argmax(-1)]

    def log_records(self, split, records, logger, global_step, **kwargs):
        right = records["right"]
        if not right:
            return []
        value = sum(right) / len(right)
        logger.add_scalar(f"tones/{split}-acc", value, global_step=global_step)
        return [f"{split}-best.ckpt"]
"""
CONFIG = "downstream_expert: {datarc: {batch: 2}}\n"

# What is broken, the line that it breaks, and words of the finding.
BROKEN = {
    "no module": (1, "class DownstreamExpert(nn.Module)", "class DownstreamExpert", ""),
    "a setting without default": (1, '["batch"]', '["batches"]', "KeyError"),
    "arguments of the runner": (1, "labels=None, **kwargs\n", "labels=None\n", "TypeError"),
    "labels are no JSON": (2, "labels or {", "labels or {1: 2, ", "not the same"),
    "labels are not enough": (
        2,
        "labels or {",
        "labels and 1 / 0 or {",
        "ZeroDivisionError|division",
    ),
    "other parameters": (
        2,
        "len(self.labels",
        "(0 if labels else 3) + len(self.labels",
        "other parameters: linear",
    ),
    "batches that are none": (
        4,
        "return [wav for wav, _ in items], [label for _, label in items]",
        "return len(items)",
        r"train: a batch is not `\(wavs, \*others\)`",
    ),
    "waveforms of a matrix": (4, "* time).numpy()", "* time).reshape(2, -1).numpy()", "shape"),
    "waveforms are too loud": (4, "return torch.sin(", "return 3 * torch.sin(", "goes up to 3"),
    "waveforms are whole numbers": (4, "* time).numpy()", "* time).long().numpy()", "int64"),
    "waveforms are too short": (4, "torch.arange(4000 + 160 * i)", "torch.arange(300)", "300"),
    "a split has no batch": (
        4,
        "Tones(), self",
        "Tones() if split != 'test' else [], self",
        "'test'",
    ),
    "another order each time": (
        5,
        "    def get_dataloader(self, split, epoch=0):\n",
        "    def get_dataloader(self, split, epoch=0):\n"
        "        import random, time\n"
        "        torch.manual_seed(random.SystemRandom().randrange(2**30))\n",
        "the batches are others",
    ),
    "collate is a lambda": (6, "collate_fn=collate", "collate_fn=lambda x: collate(x)", "pickled"),
    "shares that overlap": (
        7,
        "    def get_dataloader(self, split, epoch=0):\n",
        "    def get_dataloader(\n"
        "        self, split, epoch=0, skip_batches=0, shares=(0,), num_shares=1\n"
        "    ):\n"
        "        batches = [collate([Tones()[i]]) for i in range(7)]\n"
        "        if split != 'train':\n"
        "            batches = batches[shares[0]::num_shares]\n"
        "        return batches[skip_batches:]\n",
        "7 are too many",
    ),
    "no scalar": (
        8,
        "cross_entropy(logits, labels)",
        "cross_entropy(logits, labels).reshape(1)",
        "scalar",
    ),
    "not finite": (8, "cross_entropy(logits, labels)", "cross_entropy(logits, labels) / 0", "inf"),
    "fails on test": (
        8,
        "        logits = self.scores",
        "        assert split != 'test'\n        logits = self.scores",
        r"AssertionError \(tones_plugin/__init__\.py, line \d+, in forward\)",
    ),
    "a parameter that is not used": (
        9,
        "        self.linear =",
        "        self.spare = nn.Linear(2, 2)\n        self.linear =",
        "no gradient reaches spare",
    ),
    "features are detached": (9, "feature.mean(dim=0)", "feature.detach().mean(dim=0)", "features"),
    "one utterance": (
        10,
        "        logits = self.scores(features)\n        labels",
        "        logits = self.scores(features)\n        assert len(labels) > 1\n        labels",
        "AssertionError",
    ),
    "records that are no lists": (
        11,
        'records["right"] +=',
        'records["n"] = records["n"] if records["n"] else 1\n        records["right"] +=',
        "'n' is a int",
    ),
    "records of functions": (
        11,
        ".float().tolist()",
        ".float().tolist()\n        records['f'] += [lambda: 0]",
        "pickled",
    ),
    "records that a run cannot put together": (
        12,
        'records["right"] +=',
        'records["n"] = (1,)\n        records["right"] +=',
        "records 'n' as tuple, and only lists can be put together",
    ),
    "percent": (12, "value = sum", "value = 100 * sum", "no fraction"),
    "percent that is declared": (
        12,
        'headline = "acc", "higher", "accuracy", True',
        'headline, range = "acc", "higher", "accuracy", True, (0, 100)',
        r"tables would say 10000 %.*percent=False",
    ),
    "outside of its range": (
        12,
        'headline = "acc", "higher", "accuracy", True',
        'headline, range, percent = "acc", "higher", "accuracy", True, (2, float("inf")), False',
        r"outside of its declared range \[2, inf\)",
    ),
    "a range that is none": (
        12,
        'headline = "acc", "higher", "accuracy", True',
        'headline, range = "acc", "higher", "accuracy", True, 1.0',
        "its range is 1.0, and not the lowest and the highest",
    ),
    "an error rate without end": (
        12,
        'better, title, headline = "acc", "higher", "accuracy", True',
        'better, title, headline = "acc", "lower", "error", True',
        "1.5, which is no fraction",
    ),
    "a metric that is a word": (12, "metrics = (Metric(),)", "metrics = 'acc'", "is no Metric"),
    "another name": (12, "{split}-acc", "{split}-accuracy", "declares 'acc'"),
    "nothing reported": (
        12,
        "logger.add_scalar(f",
        "(lambda *a, **k: None)(f",
        "nothing was reported",
    ),
    "paths of checkpoints": (13, 'f"{split}-best.ckpt"', 'f"/tmp/{split}-best.ckpt"', "no name"),
    "no list of checkpoints": (
        13,
        'return [f"{split}-best.ckpt"]',
        'return f"{split}-best.ckpt"',
        "dev: it returns 'dev-best.ckpt', and not a list",
    ),
    "no batch": (14, "        if not right:\n            return []\n", "", "ZeroDivisionError"),
    "made up": (
        14,
        "        if not right:\n            return []\n",
        "        right = right or [1.0]\n",
        "of no batch",
    ),
    "counts by itself": (
        15,
        "value = sum(right) / len(right)",
        'self.seen = getattr(self, "seen", 0)\n        value = min(1.0, self.seen / 7)',
        "on two processes",
    ),
    "a process of its own": (
        7,
        "(300 + 900 * (i % 2)) * time",
        "(300 + 900 * (i % 2) + __import__('os').getpid() / 1000) * time",
        "7 are in no share, and 7 are too many",
    ),
    "data that only this process has": (
        6,
        "        self.batch =",
        "        Tones.gain = 0.5\n        self.batch =",
        r"one worker \(spawn\) gives other batches",
    ),
    "a class that is made as it is needed": (
        6,
        "return DataLoader(Tones()",
        "globals()['Made'] = type('Made', (Tones,), {'__module__': __name__})\n"
        "        return DataLoader(Made()",
        "a worker that is spawned dies: AttributeError.*'Made'",
    ),
    "a step that counts the batches": (
        16,
        "return nn.functional.cross_entropy(logits, labels)",
        "self.seen = getattr(self, 'seen', 0) + 1\n"
        "        return self.seen * nn.functional.cross_entropy(logits, labels)",
        r"the loss is 1\..*, and 0\..* on two processes",
    ),
    "a gradient that belongs to the first rank": (
        16,
        "self.linear(torch.stack([feature.mean(dim=0)",
        "self.linear(torch.stack([feature.mean(dim=0) if __import__('os').environ.get('RANK', '0')"
        " == '0' else feature.mean(dim=0).detach() * 0",
        "the (loss|gradient of linear)",
    ),
    "a rank that is gone": (
        15,
        "        logits = self.scores",
        "        __import__('os').environ.get('RANK') == '1' and __import__('os')._exit(7)\n"
        "        logits = self.scores",
        "on rank 1 of two processes: the process of rank 1 ended with 7",
    ),
    "a rank that cannot be built": (
        15,
        "        self.batch =",
        "        1 / (__import__('os').environ.get('RANK') != '1')\n        self.batch =",
        "on rank 1 of two processes: ZeroDivisionError",
    ),
    "an exit": (
        8,
        "        logits = self.scores",
        "        raise SystemExit('no luck')\n        logits = self.scores",
        "SystemExit: no luck",
    ),
    "learned outside of the state": (
        17,
        "        self.linear = nn",
        "        self.scale = torch.rand(1)\n        self.linear = nn",
        "with the same weights",
    ),
    "answers that are tensors": (18, 'self.labels["tones"][int(i)]', "i", "no JSON: .*Tensor"),
    "one answer for all": (
        18,
        "for i in self.scores(features).argmax(-1)]",
        "for i in [0]]",
        "gave 1 answers for 2 utterances",
    ),
    "an answer that is not a number": (
        18,
        'self.labels["tones"][int(i)]',
        'float("nan")',
        "what is no JSON: Out of range float",
    ),
}
ALSO = {
    "an error rate without end": ("value = sum(right) / len(right)", "value = 1.5"),
    "data that only this process has": (
        "return torch.sin(2 * torch.pi * (300",
        "return getattr(Tones, 'gain', 1.0) * torch.sin(2 * torch.pi * (300",
    ),
    "counts by itself": (
        "        logits = self.scores(features)\n",
        "        logits = self.scores(features)\n"
        "        self.seen = getattr(self, 'seen', 0) + len(features) * (split != 'train')\n",
    ),
    "learned outside of the state": ("return self.linear(", "return self.scale * self.linear("),
}


def verdicts(findings) -> dict[int, bool | None]:
    return {finding.clause.number: finding.holds for finding in findings}


# Of each kind of expert one; the others where there is time.
@pytest.mark.parametrize(
    "task",
    [
        task if task in ("asr", "ks", "sd") else pytest.param(task, marks=pytest.mark.slow)
        for task in BUILT_IN_TASKS
    ],
)
def test_the_built_in_tasks_keep_every_line(task: str, tiny_corpus: Path, manifest_cache: Path):
    findings = check_task(
        task,
        data=tiny_corpus,
        config=[ROOT / "run_scripts" / "demo.yaml"],
        overrides=f"cache_dir={manifest_cache}",
    )
    assert not [str(finding) for finding in findings if finding.holds is not True]


def test_an_expert_of_ones_own_can_keep_every_line(install):
    install(WHOLE, CONFIG)
    findings = check_task("tones")
    assert not [str(finding) for finding in findings if finding.holds is not True]
    assert [finding.clause for finding in findings] == list(CONTRACT)


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_found(what: str, install):
    line, old, new, words = BROKEN[what]
    assert WHOLE.count(old) == 1
    source = WHOLE.replace(old, new)
    if what in ALSO:
        assert source.count(ALSO[what][0]) == 1
        source = source.replace(*ALSO[what])
    install(source, CONFIG)
    broken = check_task("tones", lines=[line])[-1]
    assert broken.clause.number == line
    assert broken.holds is False
    assert re.search(words, broken.why), broken.why


def test_a_misspelt_setting_that_nobody_refuses_is_found(install):
    open_settings = WHOLE.replace('["datarc"]["batch"]', '.get("batch", 2)')
    install(open_settings, None)
    found = {f.clause.number: f for f in check_task("tones")}
    assert found[3].holds is False
    assert "downstream_expert.zz_misspelt is taken without a word" in found[3].why
    assert [number for number, f in found.items() if f.holds is False] == [3]


def test_settings_that_the_class_checks_itself_are_fine(install):
    checks = '.get("batch", 2)\n        assert set(downstream_expert) <= {"batch"}'
    install(WHOLE.replace('["datarc"]["batch"]', checks), None)
    assert verdicts(check_task("tones"))[3] is True


def test_an_expert_that_cannot_be_built_is_not_judged_further(install):
    install(WHOLE.replace("super().__init__()", "1 / 0"), CONFIG)
    first, *others = check_task("tones")
    assert first.holds is False and "ZeroDivisionError" in first.why
    assert all(finding.holds is None and not finding.checked for finding in others)


def stranger_of_the_other_test() -> tuple[str, str]:
    path = ROOT / "tests" / "test_strangers.py"
    spec = importlib.util.spec_from_file_location("strangers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EXPERT, module.DEFAULTS


def test_an_s3prl_expert_is_judged_fairly(install):
    install(*stranger_of_the_other_test())
    found = {finding.clause.number: finding for finding in check_task("tones")}
    # It has no label space and answers nothing: such lines do not apply to it.
    assert {number for number, finding in found.items() if finding.holds is None} == {2, 18}
    # And it asserts that there are batches to report of.
    assert {number for number, finding in found.items() if finding.holds is False} == {14}


def test_the_command_lists_every_line_and_tells_by_its_exit_code(install, capsys):
    install(WHOLE, CONFIG)
    assert main(["check-task", "tones"]) == 0
    captured = capsys.readouterr()
    shown = " ".join(captured.out.split())
    # What a run logs of its evaluations is no finding.
    assert "INFO" not in captured.err
    assert shown.count(" holds ") + shown.startswith("holds ") == len(CONTRACT)
    assert "tones: 18 lines hold, 0 do not, 0 do not apply." in shown


def test_the_command_fails_when_a_line_does(install, capsys):
    install(WHOLE.replace("value = sum", "value = 100 * sum"), CONFIG)
    with pytest.raises(SystemExit) as stop:
        main(["check-task", "tones"])
    assert stop.value.code == 1
    assert "does not hold 12." in " ".join(capsys.readouterr().out.split())


def test_a_corpus_that_is_not_there_is_a_mistake_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SUPERB_DATA", raising=False)
    with pytest.raises(UserError, match="speech_commands_root"):
        check_task("ks", data=tmp_path / "nothing")


def without_data(task: str, monkeypatch: pytest.MonkeyPatch) -> dict[int, Finding]:
    monkeypatch.delenv("SUPERB_DATA", raising=False)
    return {finding.clause.number: finding for finding in check_task(task)}


def test_without_corpora_the_lines_that_need_none_are_checked(monkeypatch: pytest.MonkeyPatch):
    # The twelve words of Speech Commands are known, the letters of LibriSpeech are read.
    found = without_data("ks", monkeypatch)
    assert {number for number, finding in found.items() if finding.holds} == {1, 2, 3, 14}
    read = without_data("asr", monkeypatch)
    assert {number for number, finding in read.items() if finding.holds} == {3}
    for finding in [*found.values(), *read.values()]:
        assert finding.checked == (finding.holds is True)
        assert finding.checked or "NOT CHECKED: needs --data DIR" in str(finding)


def test_what_is_broken_is_found_without_corpora(install, monkeypatch: pytest.MonkeyPatch):
    settings = "downstream_expert: {datarc: {batch: 2, root: '${data}/tones'}}\n"
    install(WHOLE.replace("        if not right:\n            return []\n", ""), settings)
    found = without_data("tones", monkeypatch)
    assert {number for number, finding in found.items() if finding.holds is False} == {14}
    assert {number for number, finding in found.items() if finding.holds} == {1, 2, 3}


def test_the_command_tells_lines_that_were_not_checked_from_lines_that_fail(
    monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.delenv("SUPERB_DATA", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["check-task", "ks"])
    assert stop.value.code == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "ks: 4 lines hold, 0 do not, 0 do not apply, 14 were not checked." in shown


@pytest.mark.parametrize("count", ["0", "-1"])
def test_no_batches_are_too_few(count: str, capsys):
    assert main(["check-task", "ks", f"--batches={count}"]) == 2
    assert f"{count} batches cannot be read. Where: --batches." in capsys.readouterr().err


def test_no_more_batches_are_evaluated_than_are_asked_for(install):
    install(WHOLE.replace("        time =", "        1 / (i < 6)\n        time ="), CONFIG)
    assert verdicts(check_task("tones", lines=[12], batches=1))[12] is True
    assert verdicts(check_task("tones", lines=[12]))[12] is False


def test_a_metric_may_be_anything_that_it_declares_to_be(install):
    declared = 'headline, range, percent = "acc", "lower", "error", True, (0, float("inf")), False'
    source = WHOLE.replace('headline = "acc", "higher", "accuracy", True', declared)
    install(source.replace("value = sum(right) / len(right)", "value = 31.5"), CONFIG)
    (_, finding) = check_task("tones", lines=[12])
    assert finding.holds is True
    assert "Declared: acc in [0, inf)." in finding.why


def test_a_program_that_checks_at_its_top_level_is_not_run_again(install, tmp_path: Path):
    install(WHOLE, CONFIG)
    (tmp_path / "program.py").write_text(
        "print('begun')\n"
        "from s3prl_mtl.authoring import check_task\n"
        "print([f.clause.number for f in check_task('tones', lines=[6, 15]) if f.holds])\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([sys.path[0], str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["begun", "[1, 6, 15]"], done.stderr


def test_the_docs_quote_the_contract_line_by_line():
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    section = text.partition("## The contract\n")[2].partition("\n## ")[0]
    quoted = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |\n\n|\Z)", section, flags=re.M | re.S)
    lines = {int(number): " ".join(words.split()) for number, words in quoted}
    assert lines == {clause.number: clause.text for clause in CONTRACT}
