"""The model card: what it says of a run, read as the hub reads it."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.cli.main import main
from s3prl_mtl.data.corpus import Official
from s3prl_mtl.data.corpus_report import CorpusSizes, SplitCounts
from s3prl_mtl.export import export
from s3prl_mtl.export.merge import merge
from s3prl_mtl.export.model_card import count_fields
from s3prl_mtl.tracking.recorder import read_results
from s3prl_mtl.training.run_dir import write_corpora
from tests.export.tuned_runs import HEAD, save_run, tuned

SETTINGS = (
    "scheduler=null,,runner.eval_step=1,,ks.downstream_expert.datarc.num_workers=0,,"
    "sid.downstream_expert.datarc.num_workers=0,,sid.fraction=0.5"
)


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, manifest_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks with results."""
    folder = tmp_path_factory.mktemp("card") / "run"
    words = ["-u", "hubert_tiny", "-d", "ks,sid", "--steps", "2", "-p", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERB_DATA", str(tiny_corpus))
        patch.setenv("S3PRL_MTL_CACHE", str(manifest_cache))
        assert main([*words, "-o", SETTINGS, "--device", "cpu"]) == 0
    return folder


def card_of(run: Path, out: Path, **options: Any) -> str:
    return (export(run, "transformers", out, **options) / "README.md").read_text(encoding="utf-8")


def metadata_of(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def rows(card: str, heading: str) -> list[list[str]]:
    """The rows of the first table of a section."""
    section = card.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_results_are_those_of_the_run_with_their_weights(run: Path, tmp_path: Path) -> None:
    card = card_of(run, tmp_path / "out")
    results = read_results(run)
    found = {(task, split): shown for task, _, split, _, shown, _, _ in rows(card, "Results")}
    for task in ("ks", "sid"):
        assert found[task, "test"] == f"{100 * results[task]['test']['acc']:.2f} %"
    sources = {row[0]: row[5:] for row in rows(card, "Results")}
    best = {task: checkpoints.load(run / task / "dev-best.ckpt").step for task in sources}
    for task, (source, these) in sources.items():
        assert source == f"dev-best, step {best[task]}"
        assert these == ("yes" if best[task] == 2 else "no")


def test_the_metadata_have_only_results_of_the_exported_weights(run: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    for name in ("states-2.ckpt", "ks/dev-best.ckpt"):
        step = checkpoints.load(run / name).step
        out = export(run / name, "transformers", tmp_path / name.replace("/", "-"))
        data = ModelCard.load(out / "README.md").data
        same = {
            task: checkpoints.load(run / task / "dev-best.ckpt").step == step
            for task in ("ks", "sid")
        }
        entries = data.eval_results or []
        assert {entry.task_name for entry in entries} == {t for t in same if same[t]}
        for entry in entries:
            measured = read_results(run)[entry.task_name]["test"]["acc"]
            assert entry.metric_value == pytest.approx(100 * measured, abs=1e-4)
            assert entry.dataset_split == "test"
    assert data.library_name == "transformers"
    assert {"s3prl-mtl", "ks", "sid"} <= set(data.tags)
    assert "base_model" not in data.to_dict()  # `hubert_tiny` is not on the hub


def test_corpora_have_their_sizes(run: Path, tmp_path: Path) -> None:
    found = {(row[0], row[2]): row for row in rows(card_of(run, tmp_path / "out"), "Corpora")}
    recorded = json.loads((run / "corpora.json").read_text())
    for task in ("ks", "sid"):
        for split in recorded[task]["splits"]:
            row = found.pop((task, split["split"]))
            assert row[1] == recorded[task]["title"]
            assert row[3].split()[0] == str(split["utterances"])
            assert row[4] == f"{split['hours']:.2f}"
            assert ("0.5" in row[3]) == ((task, split["split"]) == ("sid", "train"))
    assert not found


def test_a_corpus_is_named_on_the_hub_only_if_it_is_complete(run: Path, tmp_path: Path) -> None:
    assert "datasets" not in metadata_of(card_of(run, tmp_path / "small"))
    copy = shutil.copytree(run, tmp_path / "run")
    counts = SplitCounts("train", 51_094, 14.1, 2, 12, Official(utterances=51_094))
    write_corpora(copy, {"ks": CorpusSizes("Speech Commands v0.01", [counts])})
    assert metadata_of(card_of(copy, tmp_path / "out"))["datasets"] == ["google/speech_commands"]
    half = replace(counts, utterances=25_000)
    write_corpora(copy, {"ks": CorpusSizes("Speech Commands v0.01", [half])})
    assert "datasets" not in metadata_of(card_of(copy, tmp_path / "half"))


def test_layer_weights_are_those_of_the_exported_checkpoint(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tuned("base_style"), heads={"ks": HEAD})
    wanted = torch.softmax(torch.linspace(-1.0, 1.5, 4), dim=0)
    found = rows(card_of(run, tmp_path / "out"), "Layer weights")
    assert [float(row[3]) for row in found] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert [row[1] for row in found] == [
        *(f"`output.hidden_states[{index}]`" for index in range(3)),
        "`output.last_hidden_state`",
    ]


def test_without_a_folder_of_a_run_nothing_is_made_up(tmp_path: Path) -> None:
    """Neither for a checkpoint alone, nor for merged weights in the folder of a run."""
    run = save_run(tmp_path / "run", tuned("odd_base"), heads={"ks": HEAD})
    card = card_of(run, tmp_path / "out")
    assert rows(card, "Results") == rows(card, "Corpora") == []
    assert "model-index" not in metadata_of(card)


def test_merged_weights_have_no_results(run: Path, tmp_path: Path) -> None:
    (merged,) = merge("hubert_tiny", [str(run)], "0.5", tmp_path / "merged.ckpt")
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.copy(merged, copy / "merged.ckpt")
    card = card_of(copy / "merged.ckpt", tmp_path / "out")
    assert rows(card, "Results") == [] and "model-index" not in metadata_of(card)


def test_the_card_is_the_same_each_time_and_names_no_folder_of_this_machine(
    run: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    card = card_of(run, tmp_path / "one")
    assert card == card_of(shutil.copytree(run, tmp_path / "copied"), tmp_path / "two")
    for folder in (tmp_path, run.parent, tiny_corpus, Path.home()):
        assert str(folder) not in card


def test_a_local_upstream_is_named_without_its_folder(tmp_path: Path) -> None:
    upstream = tuned("base_style")
    run = save_run(tmp_path / "run", upstream, f"hf:{tmp_path / 'mine'}", heads={"ks": HEAD})
    card = card_of(run, tmp_path / "out")
    assert "`hf:mine`" in card and str(tmp_path) not in card
    for name, base in (
        ("hubert", "facebook/hubert-base-ls960"),
        ("hf:microsoft/wavlm-base@main", "microsoft/wavlm-base"),
    ):
        saved = save_run(tmp_path / base, upstream, name)
        found = metadata_of(card_of(saved, tmp_path / f"out-{name[:5]}"))
        assert found["base_model"] == base


def test_a_base_model_is_named_only_where_the_weights_began_as_its(
    run: Path, tmp_path: Path
) -> None:
    for key, value, others in (
        ("init_upstream_ckpt", "other.pt", {}),
        ("init_ckpt", ["other"], {"init_heads_only": False}),
    ):
        folder = shutil.copytree(run, tmp_path / key)
        saved = checkpoints.load(folder / "states-2.ckpt")
        config = {**saved.config, key: value, **others}
        config["upstream"] = {**config["upstream"], "name": "hubert"}
        checkpoints.save(replace(saved, config=config), folder / "states-2.ckpt")
        assert "base_model" not in metadata_of(card_of(folder, tmp_path / f"out-{key}"))


def test_an_encoder_that_is_not_trained_yet_is_called_frozen(run: Path, tmp_path: Path) -> None:
    assert "frozen" not in card_of(run, tmp_path / "trained").split("## Load")[0]
    folder = shutil.copytree(run, tmp_path / "run")
    saved = checkpoints.load(folder / "states-2.ckpt")
    config = {**saved.config, "runner": {**saved.config["runner"], "unfreeze_after": 5}}
    checkpoints.save(replace(saved, config=config), folder / "states-2.ckpt")
    assert "frozen" in card_of(folder, tmp_path / "out").split("## Load")[0]


def test_results_on_a_part_of_a_corpus_say_so(run: Path, tmp_path: Path) -> None:
    (found,) = metadata_of(card_of(run / "ks" / "dev-best.ckpt", tmp_path / "out"))["model-index"]
    for result in found["results"]:
        assert re.search(r"\(\d+ of \d+ utterances\)$", result["dataset"]["name"])


def test_an_export_shows_no_progress_bar(run: Path, tmp_path: Path, capfd) -> None:
    export(run, "transformers", tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_fields_to_fill_in_are_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run), "--format", "transformers", "-o", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert count_fields(out) == len(re.findall("TODO", card)) == 3
    assert "3 fields" in capsys.readouterr().out


def test_undefined_results_are_not_in_the_metadata(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    lines = []
    for line in (copy / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["split"] == "test":
            entry["value"] = None
        lines.append(json.dumps(entry))
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    card = card_of(copy, tmp_path / "out")
    assert "model-index" not in metadata_of(card)
    assert {row[4] for row in rows(card, "Results")} == {"not a number"}
    assert math.nan not in metadata_of(card).values()
