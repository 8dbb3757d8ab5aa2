"""`ssl`: data, masks, and training beside other tasks. Its loss: test_ssl_loss.py."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from downstream_plugins.ssl import MaskedPrediction
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.distributed.world import World
from s3prl_mtl.training.forward import forward
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.upstreams import load_upstream
from tests.comparison import assert_same
from tests.distributed.ranks import run_ranks
from tests.distributed.test_resuming import train
from tests.distributed.test_updates import (
    assert_same_update,
    make_config,
    some_steps,
    without_dropout,
)
from tests.mistakes import user_error
from tests.unit_labelled import CLASSES, write_unit_labels

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def labelled(made_once: Callable[..., Path], tiny_corpus: Path) -> Path:
    """Lists and labels of the mini corpus. Do not write to it."""
    return made_once("unit_labels", lambda folder: write_unit_labels(folder, tiny_corpus))


def datarc(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"path": str(folder), "train_batch_size": 2, "num_workers": 0, **settings}


@pytest.fixture
def make_expert(tmp_path: Path, manifest_cache: Path) -> Callable[..., MaskedPrediction]:
    def make(folder: Path, upstream: Any = None, **settings: Any) -> MaskedPrediction:
        return MaskedPrediction(
            96,
            320,
            {"datarc": datarc(folder, **settings)},
            tmp_path,
            cache_dir=manifest_cache,
            seed=3,
            upstream=upstream,
        )

    return make


@pytest.fixture
def config(tiny_corpus: Path, manifest_cache: Path, labelled: Path) -> Callable[..., dict]:
    def make(tasks: str, **flags: Any) -> dict[str, Any]:
        made = make_config(tiny_corpus, manifest_cache, tasks, **flags)
        for task in made["downstream"]:
            made[task]["downstream_expert"]["datarc"]["num_workers"] = 0
        if "ssl" in made["downstream"]:
            block = made["ssl"]["downstream_expert"]
            block["datarc"] |= datarc(labelled)
            block["lossrc"] |= {"loss_weights": [1e-3]}
        return made

    return make


# ------------------------------------------------------------------------------------ data


def test_targets_are_the_labels_of_the_frames(make_expert, labelled: Path) -> None:
    expert = make_expert(labelled)
    lines = (labelled / "dev.km").read_text().splitlines()
    seen = 0
    for wavs, targets, _ in expert.get_dataloader("dev"):
        for wav, target in zip(wavs, targets, strict=True):
            # The first four of fairseq's dictionary are special symbols.
            assert (target[0] - 4).tolist() == [int(word) for word in lines[seen].split()]
            assert target.shape == (1, (len(wav) - 80) // 320)
            seen += 1
    assert seen == len(lines)


def test_two_label_sets_at_100_a_second(make_expert, tiny_corpus: Path, tmp_path: Path) -> None:
    folder = write_unit_labels(tmp_path / "units", tiny_corpus, ("km", "mirrored"), rate=100)
    expert = make_expert(folder, label_sets=["km", "mirrored"])
    assert expert.labels["label_rate"] == 100
    lines = (folder / "dev.km").read_text().splitlines()
    _, targets, _ = next(iter(expert.get_dataloader("dev")))
    for target, line in zip(targets, lines, strict=False):
        assert (target[0] - 4).tolist() == [int(word) for word in line.split()][::2]
        assert (target.sum(0) == CLASSES - 1 + 8).all()


def test_crops_keep_the_labels_aligned(make_expert, labelled: Path) -> None:
    """A crop of a waveform has the labels of these frames."""
    expert = make_expert(labelled, max_sample_size=9_000)
    whole = {cut.id: cut.load_audio()[0] for cut in expert.cuts("train")}
    lines = (labelled / "train.km").read_text().splitlines()
    labels = dict(zip(whole, lines, strict=True))
    starts = set()
    for wavs, targets, _ in expert.get_dataloader("train"):
        for wav, target in zip(wavs, targets, strict=True):
            assert len(wav) <= 9_000
            ((name, first),) = [
                (name, first)
                for name, audio in whole.items()
                for first in range(0, max(1, len(audio) - len(wav) + 1), 320)
                if np.array_equal(audio[first : first + len(wav)], wav.numpy())
            ]
            wanted = [int(word) for word in labels[name].split()][first // 320 :]
            assert (target[0] - 4).tolist() == wanted
            starts.add(first)
    assert len(starts) > 3


def test_masks_depend_on_the_draw_of_the_utterance_only(make_expert, labelled: Path) -> None:
    """Not on the loader, the number of shares or what was drawn before."""

    def seeds(epoch: int, workers: int = 0, num_shares: int = 1) -> dict[bytes, int]:
        expert = make_expert(labelled, num_workers=workers, train_batch_size=1)
        found = {}
        for share in range(num_shares):
            shares = {"shares": (share,), "num_shares": num_shares}
            for wavs, _, drawn in expert.get_dataloader("train", epoch, **shares):
                found |= {
                    wav.numpy().tobytes(): seed for wav, seed in zip(wavs, drawn, strict=True)
                }
        return found

    first = seeds(0)
    assert first == seeds(0, workers=1) == seeds(0, num_shares=2)
    assert len(set(first.values())) == len(first)
    assert all(seed != first[wav] for wav, seed in seeds(1).items())


def test_labels_of_other_audio(make_expert, labelled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "units"
    shutil.copytree(labelled, folder)
    lines = (labelled / "dev.km").read_text().splitlines()
    (folder / "dev.km").write_text("\n".join(reversed(lines)) + "\n")
    with user_error("corpus-inconsistent", where=r"dev\.km, line 1"):
        make_expert(folder).prepare("dev")
    (folder / "dev.km").write_text("\n".join(lines[:-1]) + "\n")
    with user_error("corpus-inconsistent", where=r"dev\.km"):
        make_expert(folder).prepare("dev")
    *others, last = lines
    (folder / "dev.km").write_text("\n".join([*others, "99" + last[1:]]) + "\n")
    with user_error("label-unknown", where=rf"dev\.km, line {len(lines)}"):
        make_expert(folder).prepare("dev")


def test_a_split_with_another_label_rate(
    make_expert, labelled: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "units"
    shutil.copytree(labelled, folder)
    twice = write_unit_labels(tmp_path / "twice", tiny_corpus, rate=100)
    shutil.copy(twice / "dev.km", folder)
    with user_error("corpus-inconsistent", where=r"dev\.km"):
        make_expert(folder).prepare("dev")


def test_files_that_are_longer_than_listed(make_expert, labelled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "units"
    shutil.copytree(labelled, folder)
    root, first, *others = (labelled / "dev.tsv").read_text().splitlines()
    name, samples = first.split("\t")
    row, *rows = (labelled / "dev.km").read_text().splitlines()
    (folder / "dev.tsv").write_text("\n".join([root, f"{name}\t{int(samples) - 3200}", *others]))
    (folder / "dev.km").write_text("\n".join([" ".join(row.split()[:-10]), *rows]))
    expert = make_expert(folder)
    expert.prepare("dev")
    (finding,) = expert.findings("dev", expert._split_cuts["dev"])
    assert finding.certain and finding.code == "corpus-inconsistent"
    assert name in (finding.where or "")


def test_short_files_are_left_out(make_expert, labelled: Path) -> None:
    _, *lines = (labelled / "train.tsv").read_text().splitlines()
    samples = sorted(int(line.split("\t")[1]) for line in lines)
    least = samples[len(samples) // 2]
    expert = make_expert(labelled, min_sample_size=least)
    assert expert.utterances("train") == sum(number >= least for number in samples)


@pytest.mark.parametrize(
    ("block", "setting", "value"),
    [
        ("modelrc", "mask_prob", "many"),
        ("modelrc", "mask_selection", "zipf"),
        ("modelrc", "mask_channel_length", 0),
        ("modelrc", "skip_masked", True),
        ("lossrc", "loss_weights", [1.0, 2.0]),
        ("lossrc", "loss_weights", "5"),
    ],
)
def test_settings_out_of_range(block: str, setting: str, value: Any, tmp_path: Path) -> None:
    labels = {"label_rate": 50, "dictionaries": {"km": ["0", "1"]}}
    with user_error("invalid-value", where=setting):
        MaskedPrediction(8, 320, {block: {setting: value}}, tmp_path, labels=labels)


# ------------------------------------------------------------------------- start of the head


def test_the_head_starts_from_the_encoders_where_it_fits(tmp_path: Path) -> None:
    upstream = load_upstream("hubert_tiny")

    def head(classes: int, **modelrc: Any) -> MaskedPrediction:
        labels = {"label_rate": 50, "dictionaries": {"km": [str(n) for n in range(classes)]}}
        settings = {"modelrc": modelrc}
        return MaskedPrediction(96, 320, settings, tmp_path, labels=labels, upstream=upstream)

    for expert, fits in ((head(100), True), (head(99), False), (head(100, final_dim=16), False)):
        assert torch.equal(expert.final_proj.weight, upstream.final_proj.weight) is fits
        assert torch.equal(expert.label_embs_concat, upstream.label_embs_concat) is fits
        assert ("[104, 32]" in expert.starts_from) is not fits


def test_class_embeddings_are_taken_by_the_names_of_the_classes(tmp_path: Path) -> None:
    upstream = load_upstream("hubert_tiny")

    def head(dictionaries: dict[str, list[str]]) -> MaskedPrediction:
        labels = {"label_rate": 50, "dictionaries": dictionaries}
        return MaskedPrediction(96, 320, {}, tmp_path, labels=labels, upstream=upstream)

    names = [str(number) for number in range(100)]
    other_order = head({"km": names[::-1]})
    own = upstream.label_embs_concat
    assert torch.equal(other_order.label_embs_concat, torch.cat([own[:4], own[4:].flip(0)]))
    # As many embeddings, but other classes.
    for dictionaries, said in (
        ({"km": [f"unit{name}" for name in names]}, "other classes than those of km"),
        ({"km": names[:46], "km2": names[:50]}, "1 label sets, not 2"),
    ):
        expert = head(dictionaries)
        assert len(expert.label_embs_concat) == len(own)
        assert not torch.equal(expert.label_embs_concat, own)
        assert not torch.equal(expert.final_proj.weight, upstream.final_proj.weight)
        assert said in expert.starts_from


def test_label_sets_in_another_order_start_from_random_weights(tmp_path: Path) -> None:
    upstream = load_upstream("hubert", FIXTURES / "hubert" / "odd_base.pt")
    five, seven = ([str(number) for number in range(size)] for size in (5, 7))
    for dictionaries, fits in (
        ({"a": five, "b": seven}, True),
        ({"b": seven, "a": five}, False),
    ):
        labels = {"label_rate": 50, "dictionaries": dictionaries}
        expert = MaskedPrediction(
            upstream.hidden_size, 320, {}, tmp_path, labels=labels, upstream=upstream
        )
        assert torch.equal(expert.label_embs_concat, upstream.label_embs_concat) is fits
        assert ("5 classes in place of the 7 of b" in expert.starts_from) is not fits


# ---------------------------------------------------------------------------------- training


def test_only_its_own_utterances_are_masked(config, tmp_path: Path) -> None:
    """The loss of another task of the same pass is the one without `ssl`."""
    runner = MultiTaskRunner(config("er,ssl"), tmp_path)
    without_dropout(runner)
    batches = runner.training_step.loaders.draw()
    (alone,) = forward(
        [batch for batch in batches if batch.task == "er"],
        runner.tasks,
        runner.encoder,
        None,
        defaultdict(lambda: defaultdict(list)),
    )
    passes = []
    encode = runner.upstream.forward
    runner.upstream.forward = lambda *arguments: passes.append(1) or encode(*arguments)
    losses = forward(
        batches, runner.tasks, runner.encoder, None, defaultdict(lambda: defaultdict(list))
    )
    assert len(passes) == 1
    beside = losses[[batch.task for batch in batches].index("er")]
    torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-6)
    sum(losses).backward()
    assert runner.upstream.mask_emb.grad is not None and runner.upstream.mask_emb.grad.any()


def test_it_learns_and_evaluates_the_same_masks(config, tmp_path: Path) -> None:
    settings = config("ssl", optimizer={"name": "AdamW", "lr": 2e-3})
    settings["runner"] |= {"total_steps": 40, "test_last": False}
    settings["ssl"]["downstream_expert"]["datarc"]["train_batch_size"] = 8
    runner = MultiTaskRunner(settings, tmp_path)
    before, again = (runner.evaluator.evaluate([("ssl", "dev")])[0].values for _ in range(2))
    assert before == again
    after = runner.train()["ssl"]["dev"]
    assert after["bits"] < before["bits"]
    assert after["acc_unmasked"] > before["acc_unmasked"] + 0.05
    assert set(after) >= {"acc_masked", "acc_unmasked", "bits"}


def test_an_upstream_that_cannot_mask(config, tmp_path: Path) -> None:
    settings = config("ssl")
    settings["upstream"]["name"] = "fbank"
    with user_error("not-supported", where="-u"):
        MultiTaskRunner(settings, tmp_path)


def test_a_resumed_run_equals_the_uninterrupted_one(config, tmp_path: Path) -> None:
    settings = config("ssl,ks", runner__save_step=2, runner__test_last=False, runner__max_keep=9)
    settings["runner"]["total_steps"] = 4
    train(World.alone(), settings, tmp_path / "whole", None)
    train(World.alone(), settings, tmp_path / "resumed", tmp_path / "whole" / "states-2.ckpt")
    whole = checkpoints.load(tmp_path / "whole" / "states-4.ckpt")
    assert_same(whole, checkpoints.load(tmp_path / "resumed" / "states-4.ckpt"))


@pytest.mark.slow
def test_task_parallel_ranks_make_the_update_of_data_parallel_ones(config, tmp_path: Path) -> None:
    settings = config("ssl,ks", optimizer={"name": "SGD", "lr": 1e-2})
    by_data = run_ranks(2, some_steps, settings, tmp_path / "data", 2)
    settings["distributed"] = {"parallel": "task", "placement": "0:ks;1:ssl"}
    by_task = run_ranks(2, some_steps, settings, tmp_path / "task", 2)
    for rank in by_task:
        assert_same_update(by_data[0], rank, names=rank[0])


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["data", "task"])
def test_two_ranks_resume_bit_for_bit(parallel: str, config, tmp_path: Path) -> None:
    settings = config("ssl,ks", runner__save_step=2, runner__test_last=False, runner__max_keep=9)
    settings["runner"]["total_steps"] = 4
    settings["distributed"]["parallel"] = parallel
    run_ranks(2, train, settings, tmp_path / "whole", None)
    run_ranks(2, train, settings, tmp_path / "resumed", tmp_path / "whole" / "states-2.ckpt")
    whole = checkpoints.load(tmp_path / "whole" / "states-4.ckpt")
    assert_same(whole, checkpoints.load(tmp_path / "resumed" / "states-4.ckpt"))
