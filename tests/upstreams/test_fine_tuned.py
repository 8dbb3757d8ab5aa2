"""Checkpoints that fairseq fine-tuned, and files of other groups."""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s3prl_mtl.upstreams import load_upstream, read_fairseq_checkpoint
from s3prl_mtl.upstreams.hubert.fairseq_file import write_fairseq_checkpoint
from tests.mistakes import user_error

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hubert"
PRETRAINED = {"cfg": "base_style", "normalised": "large_style", "args": "odd_large"}


def namespace(values: Any) -> Any:
    """Nested mappings as `argparse.Namespace`, as old versions of fairseq saved them."""
    plain = {key: value for key, value in values.items() if not key.startswith("__")}
    return argparse.Namespace(**plain)


def fine_tuned(case: str, name: str = "hubert_ctc") -> dict[str, Any]:
    """A fine-tuned model as fairseq 0.12.2 saves it: the encoder without its projection, a head,
    and the settings of pre-training inside those of the model."""
    original = read_fairseq_checkpoint(FIXTURES / f"{case}.pt")
    assert original.header is not None
    removed = ("final_proj", "target_glu")
    prefix = {"hubert_ctc": "w2v_encoder.w2v_model.", "hubert_seq2seq": "encoder.w2v_model."}[name]
    weights = {
        f"{prefix}{key}": value
        for key, value in original.state_dict.items()
        if not key.startswith(removed)
    }
    width = original.config.encoder_embed_dim
    weights["w2v_encoder.proj.weight"] = torch.ones(32, width)
    weights["w2v_encoder.proj.bias"] = torch.ones(32)
    cfg = original.header.get("cfg")
    settings = copy.deepcopy(cfg) if cfg else namespace(original.header["args"])
    normalize = original.config.normalize
    model = {"_name": name, "w2v_path": "/p.pt", "w2v_args": settings, "normalize": normalize}
    task = {"_name": "hubert_pretraining", "labels": ["ltr"], "normalize": normalize}
    content: dict[str, Any] = {
        "args": None,
        "cfg": {"model": {**model, "mask_prob": 0.5, "final_dropout": 0.0}, "task": task},
        "model": weights,
        "optimizer_history": [{"lr_scheduler_state": {"best": np.float64(1.5)}}],
        "extra_state": {"best": np.float32(0.5), "epoch": np.int64(3)},
        "task_state": {},
    }
    if not cfg:
        content["args"] = namespace({**content["cfg"].pop("model"), "arch": name, **task})
        content["args"].__dict__.pop("_name")
        content["cfg"] = None
    return content


def assert_features_of(expected: str, encoder: Any) -> None:
    truth = torch.load(FIXTURES / f"{expected}.expected.pt", weights_only=True)
    with torch.no_grad():
        found = encoder(truth["wavs"]).split()
    for one, wanted in zip(found, truth["hidden_states"], strict=True):
        torch.testing.assert_close(one, wanted, atol=1e-4, rtol=0)


def test_the_encoder_of_a_model_that_fairseq_built(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        encoder = load_upstream("hubert", FIXTURES / "fine_tuned.pt")
    assert_features_of("fine_tuned", encoder)
    assert "w2v_encoder.proj.weight" in caplog.text
    # Fine-tuning froze the convolutions.
    assert "feature_grad_mult" in caplog.text
    module: Any = encoder
    assert module.config.feature_grad_mult == 0.0
    trained: Any = load_upstream("hubert", FIXTURES / "fine_tuned.pt", feature_grad_mult=1.0)
    assert trained.config.feature_grad_mult == 1.0


@pytest.mark.parametrize("name", ["hubert_ctc", "hubert_seq2seq"])
@pytest.mark.parametrize("case", PRETRAINED.values(), ids=PRETRAINED)
def test_the_encoder_inside_has_the_features_that_fairseq_gave(
    case: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(fine_tuned(case, name), tmp_path / "tuned.pt")
    with caplog.at_level(logging.INFO):
        encoder = load_upstream("hubert", tmp_path / "tuned.pt")
    assert "w2v_encoder.proj.weight" in caplog.text
    assert "label_embs_concat" in caplog.text
    assert_features_of(case, encoder)


def test_it_is_written_as_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    torch.save(fine_tuned("base_style"), tmp_path / "tuned.pt")
    encoder = load_upstream("hubert", tmp_path / "tuned.pt")
    write_fairseq_checkpoint(tmp_path / "encoder.pt", encoder)  # type: ignore[arg-type]
    again = load_upstream("hubert", tmp_path / "encoder.pt")
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def lacks_settings(content: dict[str, Any]) -> None:
    content["cfg"]["model"]["w2v_args"] = None


def lacks_task(content: dict[str, Any]) -> None:
    del content["cfg"]["model"]["w2v_args"]["task"]


def lacks_a_layer(content: dict[str, Any]) -> None:
    name = "w2v_encoder.w2v_model.encoder.layers.0.fc1.weight"
    del content["model"][name]


def is_wav2vec(content: dict[str, Any]) -> None:
    content["cfg"]["model"]["w2v_args"]["model"]["_name"] = "wav2vec2"


@pytest.mark.parametrize(
    ("damage", "code", "where"),
    [
        (lacks_settings, "checkpoint-incomplete", "w2v_args"),
        (lacks_task, "checkpoint-format", "w2v_args"),
        (lacks_a_layer, "checkpoint-mismatch", "tuned.pt"),
        (is_wav2vec, "checkpoint-format", "wav2vec2"),
    ],
)
def test_incomplete_files_are_refused(
    damage: Callable[[dict[str, Any]], None], code: str, where: str, tmp_path: Path
) -> None:
    content = fine_tuned("base_style")
    damage(content)
    torch.save(content, tmp_path / "tuned.pt")
    with user_error(code, where):
        load_upstream("hubert", tmp_path / "tuned.pt")


def test_numbers_of_numpy_are_read_as_numbers(tmp_path: Path) -> None:
    """Training loops of other groups save scores that numpy computed."""
    encoder = load_upstream("hubert", FIXTURES / "written.pt")
    write_fairseq_checkpoint(tmp_path / "a.pt", encoder)  # type: ignore[arg-type]
    header = read_fairseq_checkpoint(tmp_path / "a.pt").header
    assert header is not None
    numbers = {"f8": np.float64(1.5), "f4": np.float32(0.5), "i8": np.int64(-7), "b": np.bool_(1)}
    header = {key: value for key, value in header.items() if key != "task_state"}
    content = {**header, "extra_state": numbers, "model": encoder.state_dict()}
    torch.save(content, tmp_path / "b.pt")
    read = read_fairseq_checkpoint(tmp_path / "b.pt").header
    assert read is not None
    assert read["extra_state"] == {"f8": 1.5, "f4": 0.5, "i8": -7, "b": True}
    assert all(type(value).__module__ == "builtins" for value in read["extra_state"].values())
    again = load_upstream("hubert", tmp_path / "b.pt")
    assert_features_of("written", again)


def test_arrays_of_objects_are_still_refused(tmp_path: Path) -> None:
    content = fine_tuned("base_style")
    content["extra_state"] = {"a": np.array([{"b": 1}], dtype=object)}
    torch.save(content, tmp_path / "tuned.pt")
    with user_error("torch-file-refused", "tuned.pt"):
        load_upstream("hubert", tmp_path / "tuned.pt")


@pytest.mark.parametrize("case", ["base_style", "large_style"])
def test_batch_norm_of_positions_as_torch_computes_it(case: str, tmp_path: Path) -> None:
    """As in mhubert-base-25hz: fairseq's `pos_conv` is BatchNorm1d, Conv1d, padding, GELU."""
    original = read_fairseq_checkpoint(FIXTURES / f"{case}.pt")
    assert original.header is not None
    config, weights = original.config, dict(original.state_dict)
    width, kernel = config.encoder_embed_dim, config.conv_pos
    convolution = torch.nn.Conv1d(
        width, width, kernel, padding=kernel // 2, groups=config.conv_pos_groups
    )
    norm = torch.nn.BatchNorm1d(width)
    norm.train()(2 + 3 * torch.randn(50, width, 7))  # statistics
    theirs = torch.nn.Sequential(norm, convolution).eval()
    old = "encoder.pos_conv.0"
    weights = {name: value for name, value in weights.items() if not name.startswith(old)}
    weights |= {f"encoder.pos_conv.{name}": value for name, value in theirs.state_dict().items()}
    header = copy.deepcopy(original.header)
    header["cfg"]["model"]["conv_pos_batch_norm"] = True
    del header["task_state"]
    torch.save({**header, "model": weights}, tmp_path / "batch_norm.pt")
    encoder = load_upstream("hubert", tmp_path / "batch_norm.pt")
    wav = torch.randn(9_000) / 5
    inputs = []
    module: Any = encoder
    module.encoder.pos_conv[0].register_forward_hook(lambda _, given, __: inputs.append(given[0]))
    with torch.no_grad():
        first = encoder([wav]).states[0]
        frames = inputs[0][: len(first)]
        positions = theirs(frames.t()[None])[0].t()[: len(frames)]
        expected = frames + torch.nn.functional.gelu(positions)
        if not config.layer_norm_first:
            expected = module.encoder.layer_norm(expected)
    torch.testing.assert_close(first, expected, atol=1e-4, rtol=0)
