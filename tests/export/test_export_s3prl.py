"""`--format s3prl` in s3prl 0.4.18."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s3prl_mtl.export import export
from s3prl_mtl.s3prl_compat.torchaudio_fallback import ensure_torchaudio
from s3prl_mtl.upstreams import Featurizer, load_upstream
from tests.export.tuned_runs import (
    FIXTURES,
    HEAD,
    HUBERTS,
    layer_weights,
    move,
    save_run,
    tuned,
    waveforms,
)
from tests.mistakes import user_error


def s3prls_hubert(path: Path) -> Any:
    ensure_torchaudio()
    from s3prl.upstream.hubert.hubconf import hubert_local

    return hubert_local(ckpt=str(path)).eval()


@torch.no_grad()
def states_of(expert: Any, waveform: Tensor) -> Tensor:
    return torch.cat(expert([waveform])["hidden_states"])


@pytest.mark.parametrize("case", HUBERTS)
def test_s3prl_gives_the_states_that_fairseq_gave(case: str, tmp_path: Path) -> None:
    truth = torch.load(FIXTURES / "export" / f"{case}.pt", weights_only=True)
    out = export(save_run(tmp_path, tuned(case)), "s3prl", tmp_path / "out")
    expert = s3prls_hubert(out / "upstream.pt")
    for wav, wanted in zip(truth["wavs"], truth["hidden_states"], strict=True):
        torch.testing.assert_close(states_of(expert, wav), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("selection", ["hidden_states", "layer_results", "last_hidden_state"])
def test_s3prls_featurizer_gives_our_features(selection: str, tmp_path: Path) -> None:
    from s3prl.upstream.interfaces import Featurizer as TheirFeaturizer

    encoder = tuned("base_style")
    run = save_run(tmp_path, encoder, selection=selection, heads={"ks": HEAD})
    out = export(run, "s3prl", tmp_path / "out")
    expert = s3prls_hubert(out / "upstream.pt")
    kept = torch.load(out / "ks" / "hubert_ks.ckpt", weights_only=True)
    theirs_selection = "last_hidden_state" if selection == "last_hidden_state" else "hidden_states"
    theirs = TheirFeaturizer(expert, theirs_selection, upstream_device="cpu")
    theirs.load_state_dict(kept["Featurizer"])
    ours = Featurizer(encoder, selection)
    if ours.weights is not None:
        ours.weights.data = layer_weights(len(ours.weights))
    wav = waveforms()[-1]
    with torch.no_grad():
        (wanted,) = ours(encoder([wav]))
        (found,) = theirs([wav], expert([wav]))
    # s3prl cuts to round(samples / 320) frames, which may be more than there are.
    assert abs(len(found) - len(wanted)) <= 1
    torch.testing.assert_close(found[: len(wanted)], wanted[: len(found)], atol=1e-4, rtol=0)


def test_every_task_has_its_head_where_init_ckpt_looks(tmp_path: Path) -> None:
    heads = {"ks": HEAD, "sv": {"connector.weight": torch.ones(2)}, "pkg:mine": HEAD}
    run = save_run(tmp_path, tuned("base_style"), name="hubert_base", heads=heads)
    out = export(run, "s3prl", tmp_path / "out")
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [
        "ks/hubert_base_ks.ckpt",
        "pkg_mine/hubert_base_pkg_mine.ckpt",
        "sv/hubert_base_sv.ckpt",
        "upstream.pt",
    ]
    kept = torch.load(out / "ks" / "hubert_base_ks.ckpt", weights_only=True)
    assert set(kept) == {"Downstream", "Featurizer"}
    assert all(torch.equal(kept["Downstream"][name], HEAD[name]) for name in HEAD)


def test_two_heads_for_one_file_are_refused(tmp_path: Path) -> None:
    run = save_run(tmp_path, tuned("base_style"), heads={"a:b": HEAD, "a_b": HEAD})
    with user_error("duplicate-name", where=r"^a_b/hubert_a_b\.ckpt"):
        export(run, "s3prl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_upstream_of_the_zoo_is_exported_with_s3prls_names(tmp_path: Path) -> None:
    converted = export(
        save_run(tmp_path / "1", tuned("base_style")), "s3prl", tmp_path / "converted"
    )
    upstream = load_upstream("hubert_local", converted / "upstream.pt")
    move(upstream)
    run = save_run(tmp_path / "run", upstream, name="hubert_local", heads={"ks": HEAD})
    out = export(run, "s3prl", tmp_path / "out")
    assert [path.name for path in out.iterdir()] == ["ks"]
    kept = torch.load(out / "ks" / "hubert_local_ks.ckpt", weights_only=True)
    theirs = s3prls_hubert(converted / "upstream.pt")
    wav = waveforms()[2]
    before = states_of(theirs, wav)
    theirs.load_state_dict(kept["Upstream"])  # as `-i` does it
    with torch.no_grad():
        wanted = upstream([wav]).states
    torch.testing.assert_close(states_of(theirs, wav), wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(before, wanted, atol=1e-2)
    assert set(kept["Featurizer"]) == {"weights"}
