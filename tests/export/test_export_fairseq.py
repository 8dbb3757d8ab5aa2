"""`--format fairseq` against outputs of fairseq for such files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from s3prl_mtl.export import export
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert, read_fairseq_checkpoint
from tests.comparison import assert_same
from tests.export.tuned_runs import (
    FIXTURES,
    HUBERTS,
    save_run,
    tuned,
    waveforms,
    without_head,
)


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


@pytest.mark.parametrize("place", ["out.pt", "out/upstream.pt"])
def test_an_encoder_without_a_head_of_pretraining_gets_a_new_projection(
    place: str, tmp_path: Path
) -> None:
    """fairseq and s3prl require `final_proj`, and label embeddings only with a dictionary."""
    truth = torch.load(FIXTURES / "export" / "no_head.pt", weights_only=True)
    encoder = without_head(tuned("base_style"))
    run = save_run(tmp_path / "run", encoder)
    export(run, "s3prl" if "/" in place else "fairseq", tmp_path / Path(place).parts[0])
    path = tmp_path / place
    model = load_hubert(path).eval()
    sums = {name: float(value.double().sum()) for name, value in model.state_dict().items()}
    assert sums == pytest.approx(truth["state_sums"], abs=1e-5)
    assert {name for name in sums if name not in encoder.state_dict()} == {
        "final_proj.weight",
        "final_proj.bias",
    }
    with torch.no_grad():
        for wav, wanted in zip(truth["wavs"], truth["hidden_states"], strict=True):
            torch.testing.assert_close(model([wav]).states, wanted, atol=1e-4, rtol=0)
    # The file is as good as any other: its encoder is exported again with the same projection.
    again = export(save_run(tmp_path / "second", model), "fairseq", tmp_path / "again.pt")
    assert_same(dict(load_hubert(again).state_dict()), dict(model.state_dict()))


def test_s3prl_loads_an_encoder_without_a_head_of_pretraining(tmp_path: Path) -> None:
    ensure_torchaudio()
    from s3prl.upstream.hubert.hubconf import hubert_local

    encoder = without_head(tuned("base_style"))
    out = export(save_run(tmp_path / "run", encoder), "s3prl", tmp_path / "out")
    upstream = hubert_local(ckpt=str(out / "upstream.pt")).eval()
    wav = waveforms()[3]
    with torch.no_grad():
        found = torch.cat(upstream([wav])["hidden_states"])
        wanted = encoder([wav]).states
    torch.testing.assert_close(found[: len(wanted)], wanted[:, : found.shape[1]], atol=1e-4, rtol=0)
