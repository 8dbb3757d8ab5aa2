"""`--format fairseq` against outputs of fairseq for such files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from s3prl_mtl.export import export
from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert, read_fairseq_checkpoint
from tests.export.tuned_runs import FIXTURES, HUBERTS, save_run, tuned
from tests.mistakes import user_error


@pytest.mark.parametrize("case", HUBERTS)
def test_fairseqs_features_equal_those_of_our_encoder(case: str, tmp_path: Path) -> None:
    truth = torch.load(FIXTURES / "export" / f"{case}.pt", weights_only=True)
    model = load_hubert(export(save_run(tmp_path, tuned(case)), "fairseq", tmp_path / "out.pt"))
    sums = {name: float(value.double().sum()) for name, value in model.state_dict().items()}
    assert sums == pytest.approx(truth["state_sums"], abs=1e-5)
    with torch.no_grad():
        found = model.eval()(truth["wavs"]).split()
    for states, wanted in zip(found, truth["hidden_states"], strict=True):
        torch.testing.assert_close(states, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", HUBERTS)
def test_other_entries_of_the_original_file_are_kept(case: str, tmp_path: Path) -> None:
    out = export(save_run(tmp_path, tuned(case)), "fairseq", tmp_path / "out.pt")
    original = read_fairseq_checkpoint(FIXTURES / "hubert" / f"{case}.pt")
    exported = read_fairseq_checkpoint(out)
    assert exported.header == original.header
    assert exported.config == original.config
    for name, value in exported.state_dict.items():
        assert not torch.equal(value, original.state_dict[name]), name


@pytest.mark.parametrize("format", ["fairseq", "s3prl"])
def test_an_encoder_without_the_parts_of_pretraining_is_refused(
    format: str, tmp_path: Path
) -> None:
    config = HubertConfig(
        conv_feature_layers=((8, 10, 5), (8, 4, 4)),
        encoder_layers=1,
        encoder_embed_dim=8,
        encoder_ffn_embed_dim=8,
        encoder_attention_heads=2,
        conv_pos=3,
        conv_pos_groups=2,
    )
    run = save_run(tmp_path / "run", Hubert(config))
    with user_error("checkpoint-incomplete", where="final_proj", fix="transformers or onnx"):
        export(run, format, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
