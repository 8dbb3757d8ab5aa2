"""Reading, refusing and writing fairseq checkpoints."""

from __future__ import annotations

import argparse
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl.upstreams.hubert.config import HubertConfig, parse_conv_layers
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from s3prl_mtl.upstreams.hubert.fairseq_file import (
    load_hubert,
    read_fairseq_checkpoint,
    write_fairseq_checkpoint,
)
from tests.mistakes import user_error

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hubert"
CASES = ["base_style", "large_style", "odd_base", "odd_large", "odd_frozen", "written"]


def globals_of(path: Path) -> set[str]:
    """The classes and functions that the pickle of a checkpoint names."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        operations = pickletools.genops(archive.read(name))
        return {str(argument) for code, argument, _ in operations if code.name == "GLOBAL"}


def test_settings_are_read_as_the_file_states_them() -> None:
    config = read_fairseq_checkpoint(FIXTURES / "large_style.pt").config
    assert config == HubertConfig(
        extractor_mode="layer_norm",
        conv_feature_layers=((32, 10, 5), *((32, 3, 2),) * 4, *((32, 2, 2),) * 2),
        conv_bias=True,
        encoder_layers=3,
        encoder_embed_dim=48,
        encoder_ffn_embed_dim=96,
        encoder_attention_heads=4,
        layer_norm_first=True,
        conv_pos=32,
        conv_pos_groups=4,
        normalize=True,
        final_proj_dim=16,
        label_embeddings=(24, 16),
    )


@pytest.mark.parametrize(
    ("case", "file_format"), [("odd_base", "OmegaConf"), ("odd_large", "args"), ("odd_frozen", "")]
)
def test_settings_are_read_from_every_kind_of_file(case: str, file_format: str) -> None:
    checkpoint = read_fairseq_checkpoint(FIXTURES / f"{case}.pt")
    assert (checkpoint.header["cfg"] is None) == (file_format == "args")
    assert zipfile.is_zipfile(FIXTURES / f"{case}.pt") == (case != "odd_frozen")
    wanted = {
        "odd_base": (((16, 8, 4), (20, 3, 4), (20, 5, 3), (12, 2, 2)), True, 15, 0.1, False),
        "odd_large": (((24, 6, 3), (24, 6, 3), (24, 4, 2)), False, 7, 1.0, True),
        "odd_frozen": (((10, 10, 5), (10, 3, 2), (10, 3, 2)), False, 16, 0.0, True),
    }[case]
    config = checkpoint.config
    assert wanted == (
        config.conv_feature_layers,
        config.conv_bias,
        config.conv_pos,
        config.feature_grad_mult,
        config.normalize,
    )


def test_header_is_plain_and_contains_the_dictionaries(tmp_path: Path) -> None:
    for case in CASES:
        header = read_fairseq_checkpoint(FIXTURES / f"{case}.pt").header
        torch.save(header, tmp_path / "header.pt")
        assert torch.load(tmp_path / "header.pt", weights_only=True) == header
        assert "last_optimizer_state" not in header
        symbols = header["task_state"]["dictionaries"][0]["symbols"]
        assert symbols[:5] == ["<s>", "<pad>", "</s>", "<unk>", "0"]


@pytest.mark.parametrize("case", CASES)
def test_round_trip_keeps_everything(case: str, tmp_path: Path) -> None:
    model = load_hubert(FIXTURES / f"{case}.pt")
    path = tmp_path / "again.pt"
    write_fairseq_checkpoint(path, model)
    original = read_fairseq_checkpoint(FIXTURES / f"{case}.pt")
    again = read_fairseq_checkpoint(path)
    assert again.config == original.config
    assert again.header == original.header
    assert set(again.state_dict) == set(original.state_dict)
    for name, value in original.state_dict.items():
        assert torch.equal(again.state_dict[name], value), name
    assert os.listdir(tmp_path) == ["again.pt"]


def test_written_file_equals_the_one_that_fairseq_loaded_strictly(tmp_path: Path) -> None:
    """fairseq 0.12.2 read `written.pt`; what we write now has the same pickle."""
    truth = torch.load(FIXTURES / "written.expected.pt", weights_only=True)
    model = load_hubert(FIXTURES / "written.pt").eval()
    sums = {name: float(value.double().sum()) for name, value in model.state_dict().items()}
    assert sums == pytest.approx(truth["state_sums"])
    with torch.no_grad():
        found = model(truth["wavs"]).split()
    for states, wanted in zip(found, truth["hidden_states"], strict=True):
        torch.testing.assert_close(states, wanted, atol=1e-4, rtol=0)

    path = tmp_path / "written.pt"
    write_fairseq_checkpoint(path, model)
    assert globals_of(path) == globals_of(FIXTURES / "written.pt")
    assert "fairseq.data.dictionary Dictionary" in globals_of(path)


def test_written_files_name_the_same_classes_as_fairseqs_own(tmp_path: Path) -> None:
    write_fairseq_checkpoint(tmp_path / "a.pt", load_hubert(FIXTURES / "base_style.pt"))
    assert globals_of(tmp_path / "a.pt") == globals_of(FIXTURES / "base_style.pt")
    write_fairseq_checkpoint(tmp_path / "b.pt", load_hubert(FIXTURES / "odd_large.pt"))
    assert "argparse Namespace" in globals_of(tmp_path / "b.pt")


def test_equal_encoders_make_equal_files(tmp_path: Path) -> None:
    model = load_hubert(FIXTURES / "base_style.pt")
    write_fairseq_checkpoint(tmp_path / "one.pt", model)
    write_fairseq_checkpoint(tmp_path / "two.pt", model)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_encoder_built_here_is_written_with_a_dictionary_of_its_labels(tmp_path: Path) -> None:
    config = HubertConfig(
        conv_feature_layers=((8, 10, 5), (8, 4, 4)),
        encoder_layers=1,
        encoder_embed_dim=8,
        encoder_ffn_embed_dim=8,
        encoder_attention_heads=2,
        conv_pos=3,
        conv_pos_groups=2,
        final_proj_dim=4,
        label_embeddings=(6, 4),
        normalize=True,
        feature_grad_mult=0.25,
    )
    write_fairseq_checkpoint(tmp_path / "new.pt", Hubert(config))
    checkpoint = read_fairseq_checkpoint(tmp_path / "new.pt")
    assert checkpoint.config == config
    dictionary = checkpoint.header["task_state"]["dictionaries"][0]
    assert dictionary["symbols"] == ["<s>", "<pad>", "</s>", "<unk>", "0", "1"]


def test_failed_write_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    model = load_hubert(FIXTURES / "base_style.pt")
    write_fairseq_checkpoint(path, model)
    before = path.read_bytes()
    assert model.fairseq_header is not None
    model.fairseq_header["unwritable"] = lambda: None
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_fairseq_checkpoint(path, model)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pt"]


class RunsACommand:
    """Unpickling this would run a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Evaluates:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').system('true')",)


class Foreign:
    """A class of another package."""


def damaged(tmp_path: Path, change: Callable[[dict[str, Any]], object], zipped: bool) -> Path:
    with torch.serialization.safe_globals([]):
        checkpoint = dict(torch.load(FIXTURES / "written.expected.pt", weights_only=True))
    checkpoint.update(
        cfg={"model": {"_name": "hubert"}, "task": {"normalize": False}}, model={}, args=None
    )
    change(checkpoint)
    path = tmp_path / "damaged.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_runs_a_command_is_refused(tmp_path: Path, zipped: bool) -> None:
    witness = tmp_path / "ran"
    payload = RunsACommand(f"touch {witness}")
    path = damaged(tmp_path, lambda c: c.update(extra_state=payload), zipped)
    with user_error("torch-file-refused", where=str(path)) as caught:
        read_fairseq_checkpoint(path)
    assert re.search(r"'(posix|nt|os)\.system'", caught.value.what)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("payload", "name"), [(Evaluates(), "eval"), (Foreign(), "Foreign"), (Path("x"), "Path")]
)
def test_objects_of_other_classes_are_refused(tmp_path: Path, payload: object, name: str) -> None:
    path = damaged(tmp_path, lambda c: c.update(extra_state=payload), True)
    with user_error("torch-file-refused", where=str(path)) as caught:
        read_fairseq_checkpoint(path)
    assert re.search(rf"'[\w.]*{name}'", caught.value.what)


@pytest.mark.parametrize("case", ["base_style", "odd_frozen"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path: Path, case: str, share: float) -> None:
    content = (FIXTURES / f"{case}.pt").read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(share * len(content))])
    with user_error("torch-file-refused", where=str(path)):
        read_fairseq_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "readme.pt"
    text.write_text("Not a checkpoint.")
    with user_error("checkpoint-format", where=str(text)):
        read_fairseq_checkpoint(text)
    archive = tmp_path / "archive.pt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("hello.txt", "hello")
    with user_error("torch-file-refused", where=str(archive)):
        read_fairseq_checkpoint(archive)
    for path in (tmp_path / "missing.pt", tmp_path):
        with user_error("checkpoint-missing", where=f"^{path}$"):
            read_fairseq_checkpoint(path)
    weights = tmp_path / "weights.pt"
    torch.save({"encoder.weight": torch.zeros(2)}, weights)
    with user_error("checkpoint-format", where=str(weights)) as caught:
        read_fairseq_checkpoint(weights)
    assert "encoder.weight" in caught.value.what
    torch.save([1, 2], weights)
    with user_error("checkpoint-format", where=str(weights)):
        read_fairseq_checkpoint(weights)


@pytest.mark.parametrize("other", ["wav2vec2", "data2vec_audio", "wav2vec_ctc", None])
def test_checkpoint_of_another_model_is_refused(tmp_path: Path, other: str | None) -> None:
    path = damaged(tmp_path, lambda c: c["cfg"]["model"].update(_name=other), True)
    with user_error("checkpoint-format", where=rf"cfg\.model\._name={other!r} in .*damaged\.pt"):
        read_fairseq_checkpoint(path)


def test_older_file_of_another_model_is_refused(tmp_path: Path) -> None:
    settings = argparse.Namespace(arch="wav2vec2", normalize=False)
    path = damaged(tmp_path, lambda c: c.update(cfg=None, args=settings), True)
    with user_error("checkpoint-format", where=r"args\.arch='wav2vec2' in .*damaged\.pt"):
        read_fairseq_checkpoint(path)


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        ("layer_type", "conformer", "not-supported"),
        ("pos_conv_depth", 5, "not-supported"),
        ("conv_pos_batch_norm", "yes", "wrong-type"),
        ("encoder_layers", "twelve", "wrong-type"),
        ("encoder_layers", True, "wrong-type"),
        ("dropout", None, "wrong-type"),
        ("dropout", 1.5, "invalid-settings"),
        ("extractor_mode", "layernorm", "invalid-settings"),
        ("encoder_attention_heads", 7, "invalid-settings"),
        ("conv_pos_groups", 0, "invalid-settings"),
        ("activation_fn", "gelu_new", "invalid-settings"),
    ],
)
def test_invalid_settings_are_named(tmp_path: Path, setting: str, value: object, code: str) -> None:
    path = damaged(tmp_path, lambda c: c["cfg"]["model"].update({setting: value}), True)
    with user_error(code, where=setting):
        read_fairseq_checkpoint(path)


def test_checkpoint_without_its_parameters_is_refused(tmp_path: Path) -> None:
    path = damaged(tmp_path, lambda c: c["model"].update(mask_emb=torch.zeros(768)), True)
    with user_error("checkpoint-mismatch", where=str(path)):
        load_hubert(path)


@pytest.mark.parametrize(
    "text",
    [
        "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
        "[(512, 10, 5), (512, 3, 2), (512, 3, 2)] + 2 * [(512, 3, 2)] + [(512, 2, 2)] * 2",
        "(([512,10,5],) + ((512,3,2),) * 4) + ((512,2,2), (512,2,2))",
    ],
)
def test_convolutions_are_parsed(text: str) -> None:
    assert parse_conv_layers(text, where="here") == HubertConfig().conv_feature_layers


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch ran')",
        "[(512,10,5)] * 10**9",
        "[(512,10,5)] * 1000000000000",
        "[(512,10,5)] + 3",
        "[(512,10)]",
        "[(512,10,-5)]",
        "[(512,10,True)]",
        "[(512,10,5.0)]",
        "[]",
        "",
        "[" * 500 + "]" * 500,
        "[(x,10,5)]",
        None,
        [[512, 10, 5]],
    ],
)
def test_other_texts_for_convolutions_are_refused(text: object) -> None:
    with user_error("invalid-settings", where=r"\bconv_feature_layers\b.*\bhere\b"):
        parse_conv_layers(text, where="here")
