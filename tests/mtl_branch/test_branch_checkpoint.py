"""Load checkpoints of the branch and of s3prl; s3prl loads ours."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

from s3prl_mtl import load
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.cli.main import main
from s3prl_mtl.config import build_config
from s3prl_mtl.errors import UserError
from s3prl_mtl.export.command import export
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.tracking.recorder import read_results
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.upstreams import load_upstream, write_fairseq_checkpoint
from tests.comparison import assert_same
from tests.mistakes import user_error

FIXTURES = Path(__file__).parents[1] / "fixtures"
TASKS = ["ks", "er", "ic", "sd"]


def config_of(path: Path, cache: Path, tasks=TASKS, **flags):
    settings = {
        "downstream": list(tasks),
        "upstream.name": "hubert_tiny",
        "upstream.feature_selection": "layer_results",
        "device": "cpu",
        "cache_dir": str(cache),
        "runner.total_steps": 1,
    }
    return build_config(files=[path], flags=settings | flags)


@pytest.fixture(scope="module")
def run(multitask_yaml: Path, manifest_cache: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run of ours with the branch's settings: its results, and what it saved."""
    folder = tmp_path_factory.mktemp("run")
    MultiTaskRunner(config_of(multitask_yaml, manifest_cache), folder).train()
    return folder, checkpoints.load(folder / "states-1.ckpt")


@pytest.fixture
def branch_file(run, multitask_yaml: Path, tmp_path: Path) -> Path:
    """The same weights as the branch saves them."""
    _, saved = run
    states: dict = {
        "OtherOptimizer": {"state": {}, "param_groups": []},
        "UpstreamOptimizer": {"state": {}, "param_groups": []},
        "Step": 7,
        "Args": argparse.Namespace(
            upstream="hubert_tiny",
            upstream_ckpt=None,
            upstream_model_config=None,
            upstream_feature_selection="layer_results",
            upstream_trainable=True,
            downstream=",".join(TASKS),
            seed=1337,
        ),
        "Config": yaml.safe_load(multitask_yaml.read_text()),
        "Upstream": OrderedDict(saved.upstream),
        "Featurizer": OrderedDict(saved.featurizer),
        "WorldSize": 2,
    }
    for task in TASKS:
        states[task] = OrderedDict(saved.tasks[task].head)
        states[f"Epoch.{task}"] = 3
    states["ks"]["log_sigma"] = torch.zeros(1)  # As --auto_loss_weights leaves it on a CPU.
    path = tmp_path / "branch" / "states-7.ckpt"
    path.parent.mkdir()
    torch.save(states, path)
    return path


def same(found, wanted) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_a_run_starts_from_the_branchs_checkpoint(
    run, branch_file: Path, multitask_yaml: Path, manifest_cache: Path, tmp_path: Path
):
    _, saved = run
    for where in (branch_file, branch_file.parent):
        config = config_of(multitask_yaml, manifest_cache, init_ckpt=str(where), seed=5)
        started = MultiTaskRunner(config, tmp_path / where.name).state()
        assert started is not None
        assert started.step == 0
        same(started.upstream, saved.upstream)
        same(started.featurizer, saved.featurizer)
        for task in TASKS:
            wanted = dict(saved.tasks[task].head)
            found = dict(started.tasks[task].head)
            for head in (wanted, found):
                head.pop("best_score")  # It is this run's own.
            same(found, wanted)


def test_the_branchs_checkpoint_is_evaluated_as_ours_is(
    run, branch_file: Path, manifest_cache: Path, tmp_path: Path
):
    folder, _ = run
    code = main(
        # The dev split first: there sd chooses its threshold, which the branch does not save.
        f"-m evaluate -e {branch_file} -t ks:test,er:test,ic:dev,ic:test,sd:dev,sd:test "
        f"-p {tmp_path} "
        f"--device cpu --cache_dir {manifest_cache}".split()
    )
    assert code == 0
    found, wanted = read_results(tmp_path), read_results(folder)
    for task in TASKS:
        assert found[task]["test"] == pytest.approx(wanted[task]["test"], rel=1e-5)
    # What the branch calls `dev` of ic is `valid` here.
    assert found["ic"]["valid"] == pytest.approx(wanted["ic"]["valid"], rel=1e-5)


def moved_corpora(branch_file: Path, tiny_corpus: Path) -> None:
    """As on another machine than that of the checkpoint."""
    saved = torch.load(branch_file, weights_only=False)
    text = yaml.safe_dump(saved["Config"]).replace(str(tiny_corpus), "/moved")
    saved["Config"] = yaml.safe_load(text)
    torch.save(saved, branch_file)


def test_missing_corpora_are_looked_for_in_the_data_folder(
    run,
    branch_file: Path,
    tiny_corpus: Path,
    manifest_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    folder, _ = run
    monkeypatch.delenv("SUPERB_DATA", raising=False)
    moved_corpora(branch_file, tiny_corpus)
    words = ["-m", "evaluate", "-e", str(branch_file), "-t", "er:test", "-p", str(tmp_path)]
    words += ["--device", "cpu", "--cache_dir", str(manifest_cache)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "/moved/IEMOCAP_full_release" in said and "--data" in said
    assert main([*words, "--data", str(tiny_corpus)]) == 0
    for text in ((tmp_path / "log.txt").read_text(), capsys.readouterr().err):
        assert text.count("er root (/moved/IEMOCAP_full_release)") == 1
    assert read_results(tmp_path)["er"] == {
        "test": pytest.approx(read_results(folder)["er"]["test"], rel=1e-5)
    }
    with pytest.raises(UserError) as caught:
        load(branch_file, ["er"], device="cpu")
    assert "SUPERB_DATA" in str(caught.value.fix)
    monkeypatch.setenv("SUPERB_DATA", str(tiny_corpus))
    assert load(branch_file, ["er"]).labels == load(folder, ["er"]).labels


def test_training_is_not_resumed_from_the_branchs_checkpoint(
    branch_file: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["-e", str(branch_file), "--device", "cpu", "--verbose"]) == 2
    words = " ".join(capsys.readouterr().err.split())
    assert "[checkpoint-incomplete]" in words
    assert f"-e {branch_file}" in words and f"-i {branch_file}" in words


def test_the_branchs_checkpoint_is_used_as_ours_is(run, branch_file: Path, tiny_corpus: Path):
    folder, _ = run
    ours = load(folder, ["ks", "er"], device="cpu")
    theirs = load(branch_file, ["ks", "er"], device="cpu")
    assert theirs.labels == ours.labels
    wavs = sorted(tiny_corpus.glob("IEMOCAP_full_release/Session1/sentences/wav/*/*.wav"))[:3]
    assert_same(theirs.predict(wavs), ours.predict(wavs))


def test_missing_label_spaces_are_named(branch_file: Path, tiny_corpus: Path):
    moved_corpora(branch_file, tiny_corpus)
    with pytest.raises(UserError) as caught:
        load(branch_file, ["ks"])
    assert "/moved/speech_commands_v0.01" in caught.value.what
    assert caught.value.where == str(branch_file)
    assert "-i" in str(caught.value.fix)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_encoder_of_the_branch_is_exported_as_ours_is(
    run, branch_file: Path, tmp_path: Path, frozen: bool
):
    _, ours = run
    wanted = dict(ours.upstream)
    if frozen:
        saved = torch.load(branch_file, weights_only=False)
        del saved["Upstream"]
        torch.save(saved, branch_file)
        original = load_upstream("hubert_tiny").state_dict()
        wanted = {f"model.{name}": value for name, value in original.items()}
    export(branch_file, "fairseq", tmp_path / "out.pt")
    found = load_upstream("hubert", str(tmp_path / "out.pt")).state_dict()
    same({f"model.{name}": value for name, value in found.items()}, wanted)


def test_a_missing_encoder_file_is_named(branch_file: Path, tmp_path: Path):
    saved = torch.load(branch_file, weights_only=False)
    saved["Args"].upstream, saved["Args"].upstream_ckpt = "hubert_local", str(tmp_path / "gone.pt")
    torch.save(saved, branch_file)
    with pytest.raises(UserError) as caught:
        export(branch_file, "fairseq", tmp_path / "out.pt")
    assert str(tmp_path / "gone.pt") in caught.value.what
    assert caught.value.where == str(branch_file)


def test_a_run_starts_from_the_encoder_only(
    run, branch_file: Path, multitask_yaml: Path, manifest_cache: Path, tmp_path: Path
):
    _, saved = run
    config = config_of(
        multitask_yaml, manifest_cache, ["er"], init_upstream_ckpt=str(branch_file), seed=5
    )
    started = MultiTaskRunner(config, tmp_path / "run").state()
    assert started is not None
    same(started.upstream, saved.upstream)
    # DistributedDataParallel puts its own name before those of what it wraps.
    wrapped = {"Upstream": {f"module.{name}": held for name, held in saved.upstream.items()}}
    torch.save(wrapped, tmp_path / "wrapped.ckpt")
    config["init_upstream_ckpt"] = str(tmp_path / "wrapped.ckpt")
    again = MultiTaskRunner(config, tmp_path / "again").state()
    assert again is not None
    same(again.upstream, saved.upstream)
    head = started.tasks["er"].head["projector.weight"]
    assert not torch.equal(head, saved.tasks["er"].head["projector.weight"])


def test_a_run_starts_from_heads_of_single_task_runs_of_s3prl(
    run, multitask_yaml: Path, manifest_cache: Path, tmp_path: Path
):
    _, saved = run
    for task in ("ks", "er"):
        path = tmp_path / "heads" / task / f"hubert_tiny_{task}.ckpt"
        path.parent.mkdir(parents=True)
        single = {
            "Downstream": saved.tasks[task].head,
            "Featurizer": {"weights": torch.zeros(13)},
            "Optimizer": {"state": {}, "param_groups": []},
            "Step": 200_000,
            "Epoch": 9,
            "Args": argparse.Namespace(upstream="hubert_tiny", device=torch.device("cpu").type),
            "Config": {"runner": {}},
        }
        torch.save(single, path)
    config = config_of(
        multitask_yaml, manifest_cache, ["ks", "er"], init_ckpt=str(tmp_path / "heads"), seed=5
    )
    started = MultiTaskRunner(config, tmp_path / "run").state()
    assert started is not None
    for task in ("ks", "er"):
        for name, value in saved.tasks[task].head.items():
            if name != "best_score":
                assert torch.equal(started.tasks[task].head[name], value)
    with user_error("checkpoint-format", where=r"hubert_tiny_ks\.ckpt", fix="-i "):
        checkpoints.load(tmp_path / "heads" / "ks" / "hubert_tiny_ks.ckpt")


def test_a_frozen_encoder_is_not_in_the_file_and_stays_as_it_was(
    run, branch_file: Path, multitask_yaml: Path, manifest_cache: Path, tmp_path: Path
):
    states = torch.load(branch_file, weights_only=False)
    del states["Upstream"]
    states["Args"].upstream_trainable = False
    torch.save(states, branch_file)
    config = config_of(multitask_yaml, manifest_cache, init_ckpt=str(branch_file))
    started = MultiTaskRunner(config, tmp_path / "run").state()
    assert started is not None
    tiny = load_upstream("hubert_tiny").state_dict()
    same(started.upstream, {f"model.{name}": value for name, value in tiny.items()})
    flags = {"init_upstream_ckpt": str(branch_file)}
    with pytest.raises(UserError) as caught:
        MultiTaskRunner(config_of(multitask_yaml, manifest_cache, **flags), tmp_path / "other")
    assert str(branch_file) in caught.value.what
    assert caught.value.where == "--init_upstream_ckpt"


def frozen(branch_file: Path) -> None:
    """As the branch saves it without --upstream_trainable."""
    states = torch.load(branch_file, weights_only=False)
    del states["Upstream"]
    states["Args"].upstream_trainable = False
    states["Args"].upstream, states["Args"].upstream_ckpt = "hubert_local", "/gone.pt"
    torch.save(states, branch_file)


def test_a_frozen_encoder_is_evaluated_from_the_file_that_is_named(
    run, branch_file: Path, manifest_cache: Path, tmp_path: Path
):
    folder, _ = run
    frozen(branch_file)
    # The encoder of the run, and another one of its size.
    export(folder, "fairseq", tmp_path / "own.pt")
    other = load_upstream("hubert", str(tmp_path / "own.pt"))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    write_fairseq_checkpoint(tmp_path / "other.pt", other)
    words = ["-m", "evaluate", "-e", str(branch_file), "-t", "er:test", "--device", "cpu"]
    words += ["--cache_dir", str(manifest_cache)]
    for name, more in {
        "own": ["-k", str(tmp_path / "own.pt")],
        "taken over": ["-k", str(tmp_path / "other.pt"), "--init_upstream_ckpt", str(folder)],
    }.items():
        assert main([*words, *more, "-p", str(tmp_path / name)]) == 0
        found, wanted = read_results(tmp_path / name), read_results(folder)
        assert found["er"]["test"] == pytest.approx(wanted["er"]["test"], rel=1e-5)
    assert main([*words, "-k", str(tmp_path / "other.pt"), "-p", str(tmp_path / "wrong")]) == 0
    assert read_results(tmp_path / "wrong")["er"]["test"] != read_results(folder)["er"]["test"]


def test_an_encoder_of_its_own_is_not_replaced_on_evaluation(
    run, branch_file: Path, capsys: pytest.CaptureFixture[str]
):
    folder, _ = run
    words = ["-m", "evaluate", "-e", str(branch_file), "--init_upstream_ckpt", str(folder)]
    assert main([*words, "--verbose"]) == 2
    text = capsys.readouterr().err
    assert "[conflicting-options]" in text and f"--init_upstream_ckpt {folder}" in text


def test_an_encoder_size_that_contradicts_its_name_is_an_error_everywhere(
    branch_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    states = torch.load(branch_file, weights_only=False)
    states["Args"].upstream = "hubert_base"
    torch.save(states, branch_file)
    layers = load_upstream("hubert_tiny").num_hidden_states - 1
    sizes = rf"{layers} layers .*\b96\b.*12 layers .*\b768\b"
    for format in ("fairseq", "s3prl", "onnx"):
        with user_error("checkpoint-mismatch") as caught:
            export(branch_file, format, tmp_path / "out")
        assert re.search(sizes, caught.value.what)
    with user_error("checkpoint-mismatch") as caught:
        load(branch_file, ["er"], device="cpu")
    assert re.search(sizes, caught.value.what)
    words = ["-m", "evaluate", "-e", str(branch_file), "-t", "er:test", "-p", str(tmp_path)]
    assert main([*words, "--device", "cpu"]) == 2
    assert re.search(sizes, " ".join(capsys.readouterr().err.split()))


def test_another_kind_of_encoder_is_named(
    run, multitask_yaml: Path, manifest_cache: Path, tmp_path: Path
):
    folder, _ = run
    flags = {"init_upstream_ckpt": str(folder), "upstream.feature_selection": "hidden_states"}
    flags["upstream.name"] = "fbank"
    with user_error("checkpoint-mismatch") as caught:
        MultiTaskRunner(config_of(multitask_yaml, manifest_cache, **flags), tmp_path / "run")
    assert re.search(r"\b96\b", caught.value.what)
    torch.save({"Upstream": {"model.embed.weight": torch.zeros(3)}}, tmp_path / "other.ckpt")
    flags |= {"init_upstream_ckpt": str(tmp_path / "other.ckpt"), "upstream.name": "hubert_tiny"}
    with user_error("checkpoint-mismatch"):
        MultiTaskRunner(config_of(multitask_yaml, manifest_cache, **flags), tmp_path / "run")
    torch.save({"Upstream": 5}, tmp_path / "none.ckpt")
    flags["init_upstream_ckpt"] = str(tmp_path / "none.ckpt")
    with pytest.raises(UserError) as none:
        MultiTaskRunner(config_of(multitask_yaml, manifest_cache, **flags), tmp_path / "run")
    assert str(tmp_path / "none.ckpt") in none.value.what
    assert none.value.where == "--init_upstream_ckpt"


def test_another_number_of_layers_is_named(
    branch_file: Path, multitask_yaml: Path, manifest_cache: Path, tmp_path: Path
):
    flags = {
        "init_ckpt": str(branch_file),
        "upstream.name": "hubert",
        "upstream.ckpt": str(FIXTURES / "hubert" / "base_style.pt"),
    }
    tiny = load_upstream("hubert_tiny")
    sizes = rf"{tiny.num_hidden_states - 1} layers .*\b96\b.*3 layers .*\b48\b"
    with user_error("checkpoint-mismatch") as caught:
        MultiTaskRunner(config_of(multitask_yaml, manifest_cache, **flags), tmp_path / "run")
    assert re.search(sizes, caught.value.what)


def test_another_selection_of_layers_is_named(
    branch_file: Path, multitask_yaml: Path, manifest_cache: Path, tmp_path: Path
):
    flags = {"init_ckpt": str(branch_file), "upstream.feature_selection": "hidden_states"}
    with user_error("checkpoint-mismatch", fix="-s layer_results"):
        MultiTaskRunner(config_of(multitask_yaml, manifest_cache, **flags), tmp_path / "run")


def test_a_head_of_another_width_is_named(
    run, multitask_yaml: Path, manifest_cache: Path, tmp_path: Path
):
    _, saved = run
    head = dict(saved.tasks["ks"].head)
    head["projector.weight"] = torch.zeros(16, 768)
    path = tmp_path / "ks" / "hubert_tiny_ks.ckpt"
    path.parent.mkdir()
    torch.save({"Downstream": head}, path)
    config = config_of(multitask_yaml, manifest_cache, ["ks"], init_ckpt=str(tmp_path))
    with user_error("checkpoint-mismatch") as caught:
        MultiTaskRunner(config, tmp_path / "run")
    assert re.search(r"\bks\b.*\b768\b.*\b96\b", caught.value.what)


def test_the_branchs_official_encoders_need_no_original(branch_file: Path):
    states = torch.load(branch_file, weights_only=False)
    states["Args"].upstream = "hubert_base"
    states["Upstream"]["model.final_proj.weight"] = torch.zeros(256, 768)
    states["Upstream"]["model.label_embs_concat"] = torch.zeros(504, 256)
    torch.save(states, branch_file)
    info = checkpoints.load(branch_file).upstream_info
    assert (info["config"]["encoder_layers"], info["config"]["encoder_embed_dim"]) == (12, 768)
    assert (info["config"]["final_proj_dim"], info["config"]["label_embeddings"]) == (
        256,
        [504, 256],
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Args", None),
        ("Config", [1]),
        ("Upstream", 5),
        ("ks", 3),
        ("Featurizer", "x"),
        ("Step", "x"),
    ],
)
def test_a_part_of_the_wrong_type_is_named(key: str, value: object, branch_file: Path):
    content = torch.load(branch_file, weights_only=False)
    content[key] = value
    torch.save(content, branch_file)
    with user_error("checkpoint-format", where=rf"^{key} in "):
        checkpoints.load(branch_file)


def test_nothing_in_a_branchs_file_is_executed(branch_file: Path, tmp_path: Path):
    states = torch.load(branch_file, weights_only=False)
    states["Args"].hook = print
    torch.save(states, branch_file)
    with user_error("torch-file-refused"):
        checkpoints.load(branch_file)


@pytest.mark.parametrize("style", ["base", "large"])
def test_s3prl_loads_the_encoder_that_we_save(style: str, tmp_path: Path):
    """s3prl's own expert takes `Upstream` strictly, and then gives our hidden states."""
    ensure_torchaudio()
    from s3prl.upstream.hubert.expert import UpstreamExpert
    from s3prl.upstream.hubert.hubert_model import HubertConfig

    source = FIXTURES / "hubert" / f"{style}_style.pt"
    ours = load_upstream("hubert", source)
    assert ours.checkpoint_info is not None
    header = ours.checkpoint_info["fairseq_header"]
    model_settings = header["cfg"]["model"]
    rows = ours.checkpoint_info["config"]["label_embeddings"][0]
    known = {field.name for field in fields(HubertConfig)}
    converted = {
        "task_cfg": {"normalize": header["cfg"]["task"]["normalize"], "label_rate": 50.0},
        "model_cfg": {name: held for name, held in model_settings.items() if name in known},
        "model_weight": dict(ours.state_dict()),
        "dictionaries_symbols": [[str(number) for number in range(rows)]],
    }
    path = tmp_path / "converted.pt"
    torch.save(converted, path)
    theirs = UpstreamExpert(str(path)).eval()
    # Trained a little, and saved as a run saves it.
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    upstream = {f"model.{name}": held for name, held in ours.state_dict().items()}
    theirs.load_state_dict(upstream, strict=True)
    wav = 0.1 * torch.randn(9000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = torch.cat(list(theirs([wav])["hidden_states"]))
        found = ours([wav]).states
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
