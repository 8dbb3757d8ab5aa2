"""The command `merge`: the formula, and files that can be used."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import s3prl_mtl
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.compatibility import check_resume
from s3prl_mtl.checkpoint.restore import encoder_weights
from s3prl_mtl.cli.main import command_parser, main
from s3prl_mtl.config import build_config
from s3prl_mtl.export import export
from s3prl_mtl.export.merge import merge
from s3prl_mtl.export.pretraining_head import PARTS
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.upstreams import Hubert, load_upstream, write_fairseq_checkpoint
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert
from tests.comparison import assert_same
from tests.export.tuned_runs import FIXTURES, HEAD, move, save_run, tuned
from tests.mistakes import user_error

BASE = FIXTURES / "hubert" / "odd_base.pt"
SMALL_HEADS = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "run", tuned("odd_base"), heads={"ks": HEAD})


def state_of(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".pt":
        return dict(load_hubert(path).state_dict())
    return encoder_weights(checkpoints.load(path).upstream)


def base_state() -> dict[str, Tensor]:
    return dict(load_hubert(BASE).state_dict())


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
@pytest.mark.parametrize("alpha", ["0.25", "0.7", "-0.5", "1.5"])
def test_one_run_is_interpolated_with_its_base(
    alpha: str, suffix: str, run: Path, tmp_path: Path
) -> None:
    (out,) = merge(str(BASE), [str(run)], alpha, tmp_path / f"out{suffix}")
    base, end = base_state(), tuned("odd_base").state_dict()
    check(state_of(out), {n: base[n] + float(alpha) * (end[n] - base[n]) for n in base})


@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_0_and_1_are_the_base_and_the_run_exactly(suffix: str, run: Path, tmp_path: Path) -> None:
    files = merge(str(BASE), [str(run)], "0,1", tmp_path / f"out{suffix}")
    assert [path.name for path in files] == [f"out-0{suffix}", f"out-1{suffix}"]
    assert_same(state_of(files[0]), base_state())
    assert_same(state_of(files[1]), dict(tuned("odd_base").state_dict()))


@pytest.mark.parametrize(("alpha", "weights"), [("0.3", (0.3, 0.3)), ("0.5,-0.2", (0.5, -0.2))])
def test_the_changes_of_several_encoders_are_added(
    alpha: str, weights: tuple[float, float], run: Path, tmp_path: Path
) -> None:
    other = tuned("odd_base")
    move(other)
    write_fairseq_checkpoint(tmp_path / "other.pt", other)
    inputs = [str(run), str(tmp_path / "other.pt")]
    (out,) = merge(str(BASE), inputs, alpha, tmp_path / "out.ckpt")
    base, one, two = base_state(), tuned("odd_base").state_dict(), other.state_dict()
    first, second = weights
    expected = {n: base[n] + first * (one[n] - base[n]) + second * (two[n] - base[n]) for n in base}
    check(state_of(out), expected)
    assert_same(checkpoints.load(out).tasks["ks"].head, HEAD)


def test_by_layer_alpha_is_linear_from_the_first_layer_to_the_last(
    tmp_path: Path,
) -> None:
    run = save_run(tmp_path / "run", tuned("base_style"), name="hubert")
    base = load_hubert(FIXTURES / "hubert" / "base_style.pt").state_dict()
    end = tuned("base_style").state_dict()
    (out,) = merge(
        str(FIXTURES / "hubert" / "base_style.pt"),
        [str(run)],
        "0.1:0.7",
        tmp_path / "out.ckpt",
        by_layer=True,
    )
    layers = 1 + max(int(m[1]) for n in base if (m := re.match(r"encoder\.layers\.(\d+)", n)))
    assert layers > 1
    found = state_of(out)
    for name, value in found.items():
        match = re.match(r"encoder\.layers\.(\d+)", name)
        alpha = 0.1 + 0.6 * (int(match[1]) / (layers - 1) if match else 0)
        if name in ("mask_emb", "label_embs_concat") or name.startswith("final_proj"):
            alpha = 0.7  # after the layers, or unused
        torch.testing.assert_close(value, base[name] + alpha * (end[name] - base[name]))


def test_a_merged_run_predicts_and_evaluates(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "downstream": ["ks"],
        "data": str(tiny_corpus),
        "cache_dir": str(manifest_cache),
        "upstream.name": "hubert_tiny",
        "device": "cpu",
        "runner.total_steps": 2,
        "runner.test_last": False,
        "scheduler": None,
    }
    run = tmp_path / "run"
    MultiTaskRunner(build_config([SMALL_HEADS], flags=settings), run).train()
    out = tmp_path / "merged" / "out.ckpt"
    words = ["merge", "--base", "hubert_tiny", "--tuned", str(run), "--alpha", "0.25"]
    assert main([*words, "-o", str(out)]) == 0
    base, end = load_upstream("hubert_tiny").state_dict(), state_of(run / "states-2.ckpt")
    check(state_of(out), {n: base[n] + 0.25 * (end[n] - base[n]) for n in base})
    audio = str(next(tiny_corpus.rglob("*.wav")))
    (answer,) = s3prl_mtl.load(out, device="cpu").predict([audio], ["ks"])
    assert answer["ks"]
    assert main(["evaluate", "-e", str(out), "-t", "ks:dev", "--device", "cpu"]) == 0
    assert main([*words, "-o", str(tmp_path / "out.pt")]) == 0
    assert_same(dict(load_hubert(tmp_path / "out.pt").state_dict()), state_of(out))
    torch.load(out, weights_only=True)
    saved = checkpoints.load(out)
    with user_error("checkpoint-incomplete"):
        check_resume(saved, saved.config, out)  # without the state of an optimizer


def test_encoders_that_do_not_match_are_named(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    model = load_hubert(BASE)
    labels = model.label_embs_concat
    model.label_embs_concat = torch.nn.Parameter(torch.cat([labels, labels]))
    write_fairseq_checkpoint(other, model)
    with user_error("checkpoint-mismatch", where=r"--tuned .*run") as caught:
        merge(str(other), [str(run)], "0.5", tmp_path / "out.ckpt")
    rows, columns = labels.shape
    shapes = rf"\({2 * rows}, {columns}\)|\({rows}, {columns}\)"
    assert "label_embs_concat" in caught.value.what
    assert len(set(re.findall(shapes, caught.value.what))) == 2
    assert not (tmp_path / "out.ckpt").exists()


def test_encoders_of_different_sizes_are_named_with_their_sizes(run: Path, tmp_path: Path) -> None:
    other = FIXTURES / "hubert" / "large_style.pt"
    with user_error("checkpoint-mismatch", where=r"--tuned .*run") as caught:
        merge(str(other), [str(run)], "0.5", tmp_path / "out.ckpt")
    for encoder in (load_hubert(other), load_hubert(BASE)):
        size = f"{encoder.num_hidden_states - 1} layers of width {encoder.hidden_size}"
        assert size in caught.value.what


@pytest.mark.parametrize(
    ("alpha", "out", "by_layer", "code", "where"),
    [
        ("x", "out.ckpt", False, "invalid-value", "--alpha x"),
        ("nan", "out.ckpt", False, "invalid-value", "--alpha"),
        ("0.1:0.2", "out.ckpt", False, "invalid-value", "--alpha"),
        ("0.1", "out.ckpt", True, "invalid-value", "--alpha"),
        ("0.1", "out", False, "invalid-value", "-o "),
        ("0.1", "there.ckpt", False, "file-exists", "-o "),
        ("0.1,0.2,0.1", "out.ckpt", False, "conflicting-options", "--alpha"),
        ("0.1:1,.1:1", "out.ckpt", True, "conflicting-options", "--alpha"),
    ],
)
def test_a_mistake_of_the_command_line_is_named(
    alpha: str, out: str, by_layer: bool, code: str, where: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.ckpt").touch()
    with user_error(code, where=where):
        merge(str(BASE), [str(run)], alpha, tmp_path / out, by_layer)


@pytest.mark.parametrize("alpha", ["-0.5", "-.5,0.3", "-1e-1,0.2", "-0.5:0.3"])
def test_a_flag_takes_negative_numbers(alpha: str) -> None:
    words = ["--base", "hubert", "--tuned", "run", "-o", "out.pt", "--alpha", alpha]
    assert command_parser("merge").parse_args(words).alpha == alpha


def test_weights_are_one_for_all_encoders_or_one_for_each(run: Path, tmp_path: Path) -> None:
    with user_error("invalid-value", where="--alpha"):
        merge(str(BASE), [str(run)] * 3, "0.1,0.2", tmp_path / "out.ckpt")


def test_a_fairseq_file_has_no_heads_for_a_checkpoint(tmp_path: Path) -> None:
    with user_error("conflicting-options", where="-o "):
        merge(str(BASE), [str(BASE)], "0.1", tmp_path / "out.ckpt")


def test_a_missing_run_or_base_is_named(run: Path, tmp_path: Path) -> None:
    with user_error("checkpoint-missing", where=r"/no/run"):
        merge(str(BASE), ["/no/run"], "0.1", tmp_path / "out.ckpt")
    with user_error("unknown-name", where=r"--base hubrt"):
        merge("hubrt", [str(run)], "0.1", tmp_path / "out.ckpt")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_a_failed_write_is_named_and_leaves_nothing(
    suffix: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    folder = tmp_path / "merged"
    with user_error("file-unwritable", where=f"out{suffix}"):
        merge(str(BASE), [str(run)], "0.1", folder / f"out{suffix}")
    assert list(folder.iterdir()) == []


def transformers_folder(model: Hubert, folder: Path) -> Path:
    return export(save_run(folder / "source", model), "transformers", folder / "hf")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_the_base_may_be_a_folder_of_transformers(suffix: str, run: Path, tmp_path: Path) -> None:
    """It has no head of pre-training: that of the run stays."""
    folder = transformers_folder(load_hubert(BASE), tmp_path)
    (out,) = merge(str(folder), [str(run)], "0.25", tmp_path / f"out{suffix}")
    base, end = base_state(), tuned("odd_base").state_dict()
    base |= {name: end[name] for name in base if name.startswith(PARTS)}
    check(state_of(out), {n: base[n] + 0.25 * (end[n] - base[n]) for n in base})


def test_a_tuned_folder_of_transformers_has_no_head(run: Path, tmp_path: Path) -> None:
    """Merged after a run, it keeps the head of the base; merged first, there is none."""
    folder = transformers_folder(tuned("odd_base"), tmp_path)
    base, end = base_state(), tuned("odd_base").state_dict()
    bare = {name for name in base if not name.startswith(PARTS)}
    expected = {name: base[name] + 0.75 * (end[name] - base[name]) for name in bare}
    (one,) = merge(str(BASE), [str(folder), str(run)], "0.25,0.5", tmp_path / "one.pt")
    found = state_of(one)
    check({name: found[name] for name in bare}, expected)
    head = {name: base[name] + 0.5 * (end[name] - base[name]) for name in base.keys() - bare}
    (two,) = merge(str(BASE), [str(run), str(folder)], "0.5,0.25", tmp_path / "two.ckpt")
    check(state_of(two), expected | head)


def test_runs_from_a_folder_of_transformers_are_merged_with_it(tmp_path: Path) -> None:
    folder = transformers_folder(load_hubert(BASE), tmp_path)
    start, end = load_hubert(folder), load_hubert(folder)
    move(end)
    run = save_run(tmp_path / "run", end)
    (out,) = merge(str(folder), [str(run)], "0.25", tmp_path / "out.pt")
    base, tuned_state, found = start.state_dict(), end.state_dict(), state_of(out)
    assert found.keys() - base.keys() == {"final_proj.weight", "final_proj.bias"}
    expected = {n: base[n] + 0.25 * (tuned_state[n] - base[n]) for n in base}
    check({name: found[name] for name in base}, expected)


def test_a_run_of_transformers_is_merged_with_its_folder(tmp_path: Path) -> None:
    folder = transformers_folder(tuned("base_style"), tmp_path)
    name = f"hf:{folder}"
    start, end = load_upstream(name), load_upstream(name)
    move(end)
    run = save_run(tmp_path / "run", end, name)
    (out,) = merge(str(folder), [str(run)], "0.25", tmp_path / "out.ckpt")
    base, tuned_state = start.state_dict(), end.state_dict()
    check(state_of(out), {n: base[n] + 0.25 * (tuned_state[n] - base[n]) for n in base})
