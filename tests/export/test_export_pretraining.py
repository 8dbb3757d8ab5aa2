"""Exports of a run with `ssl`: fixtures/ssl/read_with_fairseq.py trained on such a file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from s3prl_mtl.export import export
from s3prl_mtl.upstreams import Featurizer
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert, read_fairseq_checkpoint
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder
from tests.export.pretrained_runs import DICTIONARIES, make_expert, save_pretrained_run
from tests.export.tuned_runs import FIXTURES, save_run, tuned
from tests.mistakes import user_error


def test_fairseq_goes_on_training_with_the_same_losses(tmp_path: Path) -> None:
    """Head, settings and dictionaries are those of the file, without any setting of the task."""
    truth = torch.load(FIXTURES / "ssl" / "exported.pt", weights_only=True)
    path = export(save_pretrained_run(tmp_path / "run"), "fairseq", tmp_path / "out.pt")
    upstream = load_hubert(path).eval()
    expert = make_expert(upstream, tmp_path)
    expert.eval()
    encoder = SharedEncoder(upstream, Featurizer(upstream), torch.device("cpu"), False, False)
    others = [[torch.cat(truth["targets"])], [truth["seed"]]]
    # fairseq trains its own copy of the head.
    for parameter in (upstream.final_proj.parameters(), [upstream.label_embs_concat]):
        for unused in parameter:
            unused.requires_grad_(False)
    parameters = [p for p in [*upstream.parameters(), *expert.parameters()] if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    for wanted in truth["losses"]:
        inputs = encoder.inputs(expert, "train", [truth["wav"]], others)
        loss = expert("train", inputs, *others, records=defaultdict(list))
        assert loss.item() == pytest.approx(wanted, abs=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_dictionaries_and_settings_of_the_run_replace_those_of_the_file(tmp_path: Path) -> None:
    truth = torch.load(FIXTURES / "ssl" / "exported.pt", weights_only=True)
    path = export(save_pretrained_run(tmp_path / "run"), "fairseq", tmp_path / "out.pt")
    header = read_fairseq_checkpoint(path).header
    symbols = [entry["symbols"] for entry in header["task_state"]["dictionaries"]]
    assert symbols == truth["symbols"]
    assert [listed[4:] for listed in symbols] == list(DICTIONARIES.values())
    assert header["cfg"]["task"]["labels"] == truth["labels"]
    model = header["cfg"]["model"]
    assert (model["final_dim"], model["untie_final_proj"], model["mask_length"]) == (6, False, 4)
    assert header["cfg"]["criterion"]["loss_weights"] == [0.1]


def test_an_older_file_keeps_its_settings_in_one_namespace(tmp_path: Path) -> None:
    """`odd_large` has `args` in place of `cfg`."""
    upstream = tuned("odd_large")
    expert = make_expert(upstream, tmp_path)
    run = save_run(tmp_path / "run", upstream)
    saved = torch.load(run / "states-40.ckpt", weights_only=True)
    saved["Config"]["ssl"] = {"downstream_expert": {"modelrc": {"logit_temp": 0.3}}}
    saved["Tasks"]["ssl"] = {
        "Downstream": dict(expert.state_dict()),
        "Labels": expert.labels,
        "Decision": {},
    }
    torch.save(saved, run / "states-40.ckpt")
    loaded = load_hubert(export(run, "fairseq", tmp_path / "out.pt"))
    assert loaded.pretraining_settings["logit_temp"] == 0.3
    assert loaded.pretraining_settings["labels"] == list(DICTIONARIES)
    assert torch.equal(loaded.label_embs_concat, expert.label_embs_concat)


def test_several_heads_of_pretraining(tmp_path: Path) -> None:
    run = save_pretrained_run(tmp_path / "run", ("ssl", "other"))
    with user_error("ambiguous-name"):
        export(run, "fairseq", tmp_path / "out.pt")
