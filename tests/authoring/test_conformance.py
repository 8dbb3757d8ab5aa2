"""check-task finds every violation of the contract, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from s3prl_mtl import authoring
from s3prl_mtl.authoring import CONTRACT, Finding, check_task, processes
from s3prl_mtl.cli.main import main
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS
from tests.forked import FORKED
from tests.mistakes import user_error
from tests.training.test_third_party_experts import DEFAULTS, EXPERT

ROOT = Path(__file__).parents[2]

# An expert that keeps every clause without using this package.
COMPLETE = """
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

# A violation: the clause, the text of COMPLETE and its replacement, and the names or numbers that
# the finding has to contain.
VIOLATIONS = {
    "not a module": (
        1,
        "class DownstreamExpert(nn.Module)",
        "class DownstreamExpert",
        "DownstreamExpert",
    ),
    "a setting without default": (1, '["batch"]', '["batches"]', "KeyError"),
    "arguments of the runner": (1, "labels=None, **kwargs\n", "labels=None\n", "TypeError"),
    "labels that are not JSON": (2, "labels or {", "labels or {1: 2, ", "labels"),
    "a label space that is not sufficient": (
        2,
        "labels or {",
        "labels and 1 / 0 or {",
        "ZeroDivisionError",
    ),
    "other parameters": (
        2,
        "len(self.labels",
        "(0 if labels else 3) + len(self.labels",
        "linear",
    ),
    "batches that are not tuples": (
        4,
        "return [wav for wav, _ in items], [label for _, label in items]",
        "return len(items)",
        r"train.*`\(wavs, \*others\)`",
    ),
    "waveforms that are 2-D": (
        4,
        "* time).numpy()",
        "* time).reshape(2, -1).numpy()",
        r"\(2, \d+\)",
    ),
    "waveforms are too loud": (4, "return torch.sin(", "return 3 * torch.sin(", r"\b3\b"),
    "waveforms of integers": (4, "* time).numpy()", "* time).long().numpy()", "int64"),
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
        "train",
    ),
    "collate is a lambda": (
        6,
        "collate_fn=collate",
        "collate_fn=lambda x: collate(x)",
        "collate_fn",
    ),
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
        r"\b7\b.*\b0\b.*\b7\b",
    ),
    "a loss that is not a scalar": (
        8,
        "cross_entropy(logits, labels)",
        "cross_entropy(logits, labels).reshape(1)",
        r"\(1,\)",
    ),
    "a loss that is not finite": (
        8,
        "cross_entropy(logits, labels)",
        "cross_entropy(logits, labels) / 0",
        "inf",
    ),
    "fails on test": (
        8,
        "        logits = self.scores",
        "        assert split != 'test'\n        logits = self.scores",
        r"AssertionError \(tones_plugin/__init__\.py, line \d+, in forward\)",
    ),
    "an unused parameter": (
        9,
        "        self.linear =",
        "        self.spare = nn.Linear(2, 2)\n        self.linear =",
        "spare",
    ),
    "features are detached": (9, "feature.mean(dim=0)", "feature.detach().mean(dim=0)", "features"),
    "one utterance": (
        10,
        "        logits = self.scores(features)\n        labels",
        "        logits = self.scores(features)\n        assert len(labels) > 1\n        labels",
        "AssertionError",
    ),
    "records that are not lists": (
        11,
        'records["right"] +=',
        'records["n"] = records["n"] if records["n"] else 1\n        records["right"] +=',
        "'n'.*int",
    ),
    "records of functions": (
        11,
        ".float().tolist()",
        ".float().tolist()\n        records['f'] += [lambda: 0]",
        "lambda",
    ),
    "records that cannot be merged": (
        12,
        'records["right"] +=',
        'records["n"] = (1,)\n        records["right"] +=',
        "'n'.*tuple",
    ),
    "percent": (12, "value = sum", "value = 100 * sum", r"acc.*\[0, 1\]"),
    "percent that is declared": (
        12,
        'headline = "acc", "higher", "accuracy", True',
        'headline, range = "acc", "higher", "accuracy", True, (0, 100)',
        r"10000 %.*percent=False",
    ),
    "a value outside the range": (
        12,
        'headline = "acc", "higher", "accuracy", True',
        'headline, range, percent = "acc", "higher", "accuracy", True, (2, float("inf")), False',
        r"acc.*\[2, inf\)",
    ),
    "a range that is not a pair": (
        12,
        'headline = "acc", "higher", "accuracy", True',
        'headline, range = "acc", "higher", "accuracy", True, 1.0',
        r"acc.*1\.0",
    ),
    "an error rate above 1": (
        12,
        'better, title, headline = "acc", "higher", "accuracy", True',
        'better, title, headline = "acc", "lower", "error", True',
        r"acc.*1\.5.*\[0, 1\]",
    ),
    "metrics that are a string": (12, "metrics = (Metric(),)", "metrics = 'acc'", "`metrics`.*'a'"),
    "a metric under another name": (12, "{split}-acc", "{split}-accuracy", "'acc'.*accuracy"),
    "a metric that is not reported": (
        12,
        "logger.add_scalar(f",
        "(lambda *a, **k: None)(f",
        "dev",
    ),
    "paths of checkpoints": (
        13,
        'f"{split}-best.ckpt"',
        'f"/tmp/{split}-best.ckpt"',
        "'/tmp/dev-best.ckpt'",
    ),
    "checkpoints that are not a list": (
        13,
        'return [f"{split}-best.ckpt"]',
        'return f"{split}-best.ckpt"',
        "dev.*'dev-best.ckpt'",
    ),
    "a failure without batches": (
        14,
        "        if not right:\n            return []\n",
        "",
        "ZeroDivisionError",
    ),
    "a value without batches": (
        14,
        "        if not right:\n            return []\n",
        "        right = right or [1.0]\n",
        "acc",
    ),
    "a count kept outside of the records": (
        15,
        "value = sum(right) / len(right)",
        'self.seen = getattr(self, "seen", 0)\n        value = min(1.0, self.seen / 7)',
        "acc",
    ),
    "data that depends on the process": (
        7,
        "(300 + 900 * (i % 2)) * time",
        "(300 + 900 * (i % 2) + __import__('os').getpid() / 1000) * time",
        r"\b7\b.*\b7\b.*\b7\b",
    ),
    "data that only this process has": (
        6,
        "        self.batch =",
        "        Tones.gain = 0.5\n        self.batch =",
        r"\(spawn\)",
    ),
    "a class created at run time": (
        6,
        "return DataLoader(Tones()",
        "globals()['Made'] = type('Made', (Tones,), {'__module__': __name__})\n"
        "        return DataLoader(Made()",
        r"\(spawn\).*AttributeError.*'Made'",
    ),
    "a step that counts the batches": (
        16,
        "return nn.functional.cross_entropy(logits, labels)",
        "self.seen = getattr(self, 'seen', 0) + 1\n"
        "        return self.seen * nn.functional.cross_entropy(logits, labels)",
        r"\b1\.\d+.*\b0\.\d+",
    ),
    "a gradient that belongs to the first rank": (
        16,
        "self.linear(torch.stack([feature.mean(dim=0)",
        "self.linear(torch.stack([feature.mean(dim=0) if __import__('os').environ.get('RANK', '0')"
        " == '0' else feature.mean(dim=0).detach() * 0",
        "loss|linear",
    ),
    "a rank that dies": (
        15,
        "        logits = self.scores",
        "        __import__('os').environ.get('RANK') == '1' and __import__('os')._exit(7)\n"
        "        logits = self.scores",
        r"rank 1\b.*\b7\b",
    ),
    "a rank that cannot be built": (
        15,
        "        self.batch =",
        "        1 / (__import__('os').environ.get('RANK') != '1')\n        self.batch =",
        r"rank 1\b.*ZeroDivisionError",
    ),
    "an exit": (
        8,
        "        logits = self.scores",
        "        raise SystemExit('no luck')\n        logits = self.scores",
        "SystemExit: no luck",
    ),
    "a weight outside of state_dict": (
        17,
        "        self.linear = nn",
        "        self.scale = torch.rand(1)\n        self.linear = nn",
        r"\d\.\d+.*\d\.\d+",
    ),
    "a mean over padded frames": (
        19,
        "torch.stack([feature.mean(dim=0) for feature in features])",
        "nn.utils.rnn.pad_sequence(list(features), batch_first=True).mean(1)",
        r"\d+ and \d+ frames.*pad_features",
    ),
    "a maximum over padded frames": (
        19,
        "torch.stack([feature.mean(dim=0) for feature in features])",
        "nn.utils.rnn.pad_sequence([f.clamp(max=-1) for f in features], batch_first=True).amax(1)",
        r"\d+ and \d+ frames",
    ),
    "the last frame of the padding": (
        19,
        "torch.stack([feature.mean(dim=0) for feature in features])",
        "nn.utils.rnn.pad_sequence(list(features), batch_first=True)[:, -1]",
        r"\d+ and \d+ frames",
    ),
    "predictions from padded frames": (
        19,
        "for i in self.scores(features).argmax(-1)]",
        "for i in self.linear(nn.utils.rnn.pad_sequence(features, batch_first=True).mean(1))]",
        "`predict`.*frames",
    ),
    "losses that are recorded with their graph": (
        11,
        "return nn.functional.cross_entropy(logits, labels)",
        "records['loss'].append(loss := nn.functional.cross_entropy(logits, labels))\n"
        "        return loss",
        r"train: 'loss'.*\.detach\(\)",
    ),
    "logits that are recorded with their graph": (
        11,
        'records["right"] +=',
        'records["scores"].append({"of": (labels, logits)})\n        records["right"] +=',
        "train: 'scores'",
    ),
    "predictions that are tensors": (18, 'self.labels["tones"][int(i)]', "i", "Tensor"),
    "one prediction for all utterances": (
        18,
        "for i in self.scores(features).argmax(-1)]",
        "for i in [0]]",
        r"\b1\b.*\b2\b",
    ),
    "a prediction of NaN": (
        18,
        'self.labels["tones"][int(i)]',
        'float("nan")',
        "float",
    ),
}
FURTHER_CHANGES = {
    "an error rate above 1": ("value = sum(right) / len(right)", "value = 1.5"),
    "data that only this process has": (
        "return torch.sin(2 * torch.pi * (300",
        "return getattr(Tones, 'gain', 1.0) * torch.sin(2 * torch.pi * (300",
    ),
    "a count kept outside of the records": (
        "        logits = self.scores(features)\n",
        "        logits = self.scores(features)\n"
        "        self.seen = getattr(self, 'seen', 0) + len(features) * (split != 'train')\n",
    ),
    "predictions from padded frames": ('self.labels["tones"][int(i)]', "float(i.softmax(-1)[0])"),
    "a weight outside of state_dict": ("return self.linear(", "return self.scale * self.linear("),
}


IN_THIS_PROCESS = [c.number for c in CONTRACT if c.number not in (6, 7, 15, 16)]
"""The clauses whose checks start no process."""


@pytest.fixture
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork ranks from a process that has imported the project, instead of starting interpreters."""
    monkeypatch.setattr(processes, "START_METHOD", FORKED.get_start_method())


def by_number(findings: list[Finding]) -> dict[int, Finding]:
    return {finding.clause.number: finding for finding in findings}


def numbers(findings: dict[int, Finding], holds: bool | None) -> set[int]:
    """The numbers of the clauses with a result."""
    return {number for number, finding in findings.items() if finding.holds is holds}


@pytest.mark.slow
@pytest.mark.parametrize("task", BUILT_IN_TASKS)
def test_the_built_in_tasks_keep_the_contract(task: str, tiny_corpus: Path, manifest_cache: Path):
    findings = check_task(
        task,
        data=tiny_corpus,
        config=[ROOT / "run_scripts" / "demo.yaml"],
        overrides=f"cache_dir={manifest_cache}",
    )
    assert not [str(finding) for finding in findings if finding.holds is not True]


@pytest.mark.slow
def test_an_expert_of_another_package_can_keep_the_contract(install):
    install(COMPLETE, CONFIG)
    findings = check_task("tones")
    assert not [str(finding) for finding in findings if finding.holds is not True]
    assert [finding.clause for finding in findings] == list(CONTRACT)


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_violation_is_found(violation: str, install, forked_ranks):
    number, old, new, pattern = VIOLATIONS[violation]
    assert COMPLETE.count(old) == 1
    source = COMPLETE.replace(old, new)
    if violation in FURTHER_CHANGES:
        assert source.count(FURTHER_CHANGES[violation][0]) == 1
        source = source.replace(*FURTHER_CHANGES[violation])
    install(source, CONFIG)
    finding = check_task("tones", lines=[number])[-1]
    assert finding.clause.number == number
    assert finding.holds is False
    assert re.search(pattern, finding.why), finding.why


def test_a_misspelt_setting_that_is_accepted_is_found(install):
    open_settings = COMPLETE.replace('["datarc"]["batch"]', '.get("batch", 2)')
    install(open_settings, None)
    found = by_number(check_task("tones", lines=IN_THIS_PROCESS))
    assert numbers(found, False) == {3}
    assert "tones.downstream_expert.zz_misspelt" in found[3].why


def test_a_class_may_check_its_settings_itself(install):
    checks = '.get("batch", 2)\n        assert set(downstream_expert) <= {"batch"}'
    install(COMPLETE.replace('["datarc"]["batch"]', checks), None)
    assert by_number(check_task("tones", lines=[3]))[3].holds is True


def test_an_expert_that_cannot_be_built_is_not_checked_further(install):
    install(COMPLETE.replace("super().__init__()", "1 / 0"), CONFIG)
    first, *others = check_task("tones")
    assert first.holds is False and "ZeroDivisionError" in first.why
    assert all(finding.holds is None and not finding.checked for finding in others)


def test_an_s3prl_expert_violates_only_the_clause_of_empty_records(install, forked_ranks):
    install(EXPERT, DEFAULTS)
    found = by_number(check_task("tones"))
    # It has neither `labels` nor `predict`.
    assert numbers(found, None) == {2, 18}
    assert numbers(found, False) == {14}


def test_a_mistake_is_reported_once(install):
    install(COMPLETE.replace("logits = self.scores(features)\n", "logits = 1 / 0\n"), CONFIG)
    found = by_number(check_task("tones", lines=[*IN_THIS_PROCESS, 15, 16]))
    assert numbers(found, False) == {8}
    consequences = {n for n, finding in found.items() if not finding.checked}
    assert {9, 10, 11, 12, 13, 15, 16, 17, 19, 20} <= consequences
    assert all(re.search(r"\b8\b", found[number].why) for number in consequences)


def test_a_mistake_that_others_need_is_reported_once(install):
    source = COMPLETE.replace(
        'records["right"] +=', 'records["n"] = 1\n        records["right"] +='
    )
    install(source, CONFIG)
    found = by_number(check_task("tones", lines=IN_THIS_PROCESS))
    assert numbers(found, False) == {11}
    assert {number for number, finding in found.items() if not finding.checked} == {12, 13}


def test_two_mistakes_are_both_reported(install):
    source = COMPLETE.replace("value = sum", "value = 100 * sum").replace(
        "[int(i)]", "[int(1 / 0)]"
    )
    install(source, CONFIG)
    assert numbers(by_number(check_task("tones", lines=IN_THIS_PROCESS)), False) == {12, 18}


@pytest.mark.parametrize(
    "loss",
    [
        "nn.functional.cross_entropy(logits, labels, reduction='sum')",
        "nn.functional.cross_entropy(logits, labels) * len(labels)",
        "sum(nn.functional.cross_entropy(x, y) for x, y in zip(logits, labels))",
    ],
)
def test_a_summed_loss_is_a_warning(loss: str, install, monkeypatch: pytest.MonkeyPatch, capsys):
    install(COMPLETE.replace("nn.functional.cross_entropy(logits, labels)", loss), CONFIG)
    found = by_number(check_task("tones", lines=[19, 20]))
    assert numbers(found, True) == {1, 19, 20}
    assert [number for number in found if found[number].doubtful] == [20]
    clauses = [clause for clause in CONTRACT if clause.number in (1, 20)]
    monkeypatch.setattr(authoring, "CONTRACT", clauses)
    assert main(["check-task", "tones"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{found[20].result} 20." in shown and counts(shown, "tones") == [2, 0, 0, 1]


@pytest.mark.parametrize(
    "loss",
    [
        "nn.functional.cross_entropy(logits, labels)",
        "sum(len(f) * nn.functional.cross_entropy(x, y)"
        " for f, x, y in zip(features, logits, labels)) / sum(map(len, features))",
        "nn.functional.cross_entropy(logits, labels) * 0",
    ],
)
def test_a_mean_over_utterances_or_frames_is_no_violation(loss: str, install):
    install(COMPLETE.replace("nn.functional.cross_entropy(logits, labels)", loss), CONFIG)
    findings = check_task("tones", lines=[19, 20])
    assert [finding.result for finding in findings] == ["holds"] * 3


def test_padding_is_checked_where_all_utterances_have_the_same_length(install):
    equal = COMPLETE.replace("4000 + 160 * i", "4000")
    install(equal, CONFIG)
    assert check_task("tones", lines=[19])[-1].holds is True
    _, old, new, _ = VIOLATIONS["a mean over padded frames"]
    install(equal.replace(old, new), CONFIG, name="padded")
    assert check_task("padded", lines=[19])[-1].holds is False


def test_the_first_of_several_data_folders_with_the_corpus_is_used(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    settings = f"cache_dir={manifest_cache}"
    roots = [tmp_path, tiny_corpus]
    found = check_task("ks", data=roots, overrides=settings, batches=1, lines=[4])
    assert [finding.holds for finding in found] == [True, True]
    with user_error("several"):
        check_task("ks", data=[tmp_path, tmp_path / "other"])


def counts(shown: str, task: str) -> list[int]:
    """The counts of clauses in the last line of `check-task`."""
    return [int(count) for count in re.findall(r"\d+", shown.rpartition(f"{task}: ")[2])]


def test_the_command_lists_every_clause_and_exits_with_0_if_all_hold(install, forked_ranks, capsys):
    install(COMPLETE, CONFIG)
    assert main(["check-task", "tones"]) == 0
    captured = capsys.readouterr()
    shown = " ".join(captured.out.split())
    # The log of evaluations is not shown.
    assert "INFO" not in captured.err
    assert re.findall(r"\bholds (\d+)\.", shown) == [str(clause.number) for clause in CONTRACT]
    assert len(captured.out.splitlines()) == len(CONTRACT) + 1
    assert counts(shown, "tones") == [20, 0, 0]


def test_the_command_exits_with_1_if_a_clause_does_not_hold(
    install, monkeypatch: pytest.MonkeyPatch, capsys
):
    clauses = [clause for clause in CONTRACT if clause.number in (1, 12)]
    monkeypatch.setattr(authoring, "CONTRACT", clauses)
    install(COMPLETE.replace("value = sum", "value = 100 * sum"), CONFIG)
    with pytest.raises(SystemExit) as stop:
        main(["check-task", "tones"])
    assert stop.value.code == 1
    result = Finding(clauses[1], False, "").result
    assert f"{result} 12." in " ".join(capsys.readouterr().out.split())


def test_a_corpus_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SUPERB_DATA", raising=False)
    with user_error("file-missing", where="--data"):
        check_task("ks", data=tmp_path / "nothing")
    with user_error("several"):
        check_task("ks", data=tmp_path)


def without_data(task: str, monkeypatch: pytest.MonkeyPatch) -> dict[int, Finding]:
    monkeypatch.delenv("SUPERB_DATA", raising=False)
    return by_number(check_task(task))


def test_without_corpora_the_clauses_that_need_none_are_checked(monkeypatch: pytest.MonkeyPatch):
    # The classes of `ks` are fixed; the symbols of `asr` are read from the corpus.
    fixed = without_data("ks", monkeypatch)
    assert numbers(fixed, True) == {1, 2, 3, 14}
    read = without_data("asr", monkeypatch)
    assert numbers(read, True) == {3}
    for finding in [*fixed.values(), *read.values()]:
        assert finding.checked == (finding.holds is True)
        assert finding.checked or (finding.result == "not checked" and "--data" in finding.why)


def test_a_violation_is_found_without_corpora(install, monkeypatch: pytest.MonkeyPatch):
    settings = "downstream_expert: {datarc: {batch: 2, root: '${data}/tones'}}\n"
    install(COMPLETE.replace("        if not right:\n            return []\n", ""), settings)
    found = without_data("tones", monkeypatch)
    assert numbers(found, False) == {14}
    assert numbers(found, True) == {1, 2, 3}


def test_the_command_exits_with_3_if_clauses_were_not_checked(
    monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.delenv("SUPERB_DATA", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["check-task", "ks"])
    assert stop.value.code == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert counts(shown, "ks") == [4, 0, 0, 16]


@pytest.mark.parametrize("count", ["0", "-1"])
def test_at_least_one_batch_is_read(count: str):
    with user_error("invalid-value", where="--batches"):
        check_task("ks", batches=int(count))
    assert main(["check-task", "ks", f"--batches={count}"]) == 2


def test_batches_limits_what_is_evaluated(install):
    install(COMPLETE.replace("        time =", "        1 / (i < 6)\n        time ="), CONFIG)
    assert check_task("tones", lines=[12], batches=1)[-1].holds is True
    assert check_task("tones", lines=[12])[-1].holds is False


def test_a_metric_may_have_any_range_that_it_declares(install):
    declared = 'headline, range, percent = "acc", "lower", "error", True, (0, float("inf")), False'
    source = COMPLETE.replace('headline = "acc", "higher", "accuracy", True', declared)
    install(source.replace("value = sum(right) / len(right)", "value = 31.5"), CONFIG)
    (_, finding) = check_task("tones", lines=[12])
    assert finding.holds is True
    assert "acc in [0, inf)" in finding.why


@pytest.mark.slow
def test_a_check_at_the_top_level_of_a_program_does_not_run_it_again(install, tmp_path: Path):
    install(COMPLETE, CONFIG)
    (tmp_path / "program.py").write_text(
        "print('begun')\n"
        "from s3prl_mtl.authoring import check_task\n"
        "print([f.clause.number for f in check_task('tones', lines=[6]) if f.holds])\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([sys.path[0], str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["begun", "[1, 6]"], done.stderr


def test_clauses_are_numbered_from_1():
    assert [clause.number for clause in CONTRACT] == list(range(1, len(CONTRACT) + 1))


def test_the_docs_quote_every_clause():
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    section = text.partition("## The contract\n")[2].partition("\n## ")[0]
    quoted = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |\n\n|\Z)", section, flags=re.M | re.S)
    lines = {int(number): " ".join(words.split()) for number, words in quoted}
    assert lines == {clause.number: clause.text for clause in CONTRACT}
