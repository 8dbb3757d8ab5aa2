"""MultiTaskRunner on real audio: nine tasks, the packaged encoder, real files."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.checkpoint.restore import encoder_weights
from s3prl_mtl.config import Config, build_config, parse_tasks
from s3prl_mtl.tracking.recorder import Recorder, read_metrics, read_results
from s3prl_mtl.training import step as training_step
from s3prl_mtl.training.forward import forward
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.training.update import clip_gradients, update_parameters
from s3prl_mtl.upstreams import HiddenStates
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder
from tests.comparison import assert_same
from tests.mistakes import user_error
from tests.training_summaries import summaries

SMALL_HEADS = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"
NINE = ["asr", "pr", "sf", "ks", "ic", "sid", "er", "sv", "sd"]
UNCLIPPED = {"runner__total_steps": 3, "runner__gradient_clipping": 1e9}


@pytest.fixture
def make_config(tiny_corpus: Path, manifest_cache: Path):
    def _make_config(tasks: str, **flags) -> Config:
        settings = {
            "downstream": parse_tasks(tasks),
            "data": str(tiny_corpus),
            "cache_dir": str(manifest_cache),
            "upstream.name": "hubert_tiny",
            "device": "cpu",
            "runner.test_first": False,
            "runner.test_last": False,
            "runner.eval_step": 1000,
            "runner.max_keep": 9,
        }
        dotted = {key.replace("__", "."): value for key, value in flags.items()}
        return build_config(files=[SMALL_HEADS], flags=settings | dotted)

    return _make_config


def losses_of_a_draw(runner: MultiTaskRunner) -> list[torch.Tensor]:
    """The losses of the next batches, without dropout."""
    run = runner.run
    run.set_training(False)
    records = defaultdict(lambda: defaultdict(list))
    batches = runner.training_step.loaders.draw()
    return forward(batches, run.tasks, run.encoder, run.specaug, records)


def test_nine_tasks_train_together_and_write_a_complete_run(make_config, tmp_path: Path):
    config = make_config("all", runner__total_steps=2, runner__test_last=True)
    runner = MultiTaskRunner(config, tmp_path)
    before = {name: value.clone() for name, value in runner.upstream.state_dict().items()}
    results = runner.train()

    moved = [
        n for n, value in runner.upstream.state_dict().items() if not torch.equal(before[n], value)
    ]
    assert "feature_extractor.conv_layers.0.0.weight" in moved
    assert "encoder.layers.0.self_attn.q_proj.weight" in moved
    assert "mask_emb" not in moved
    assert set(results) == {*NINE, "featurizer"}
    for task in NINE:
        assert len(results[task]) == 2, "a dev and a test split"
        for split, values in results[task].items():
            assert all(math.isfinite(value) for value in values.values()), (task, split)
    assert read_results(tmp_path) == results
    weights = results["featurizer"]["layer_weights"]
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    assert len(weights) == runner.upstream.num_hidden_states
    assert (tmp_path / "states-2.ckpt").is_file()
    trained = {e["task"] for e in read_metrics(tmp_path) if e["metric"] == "loss"}
    assert trained == {*NINE, "run"}


def test_the_gradient_of_a_step_is_the_sum_of_the_gradients_of_its_tasks(
    make_config, tmp_path: Path
):
    # Without dropout the batches are the only random part, and seed and epoch determine them.
    config = make_config("ks,asr,sd", runner__total_steps=3)
    gradients = []
    for tasks in (["ks", "asr", "sd"], ["ks"], ["asr"], ["sd"]):
        runner = MultiTaskRunner({**config, "downstream": tasks}, tmp_path / "-".join(tasks))
        torch.stack(losses_of_a_draw(runner)).sum().backward()
        gradients.append(runner.upstream.encoder.layers[1].fc1.weight.grad)
    torch.testing.assert_close(gradients[0], sum(gradients[1:]), rtol=1e-4, atol=1e-6)


def test_a_step_in_several_passes_has_the_gradients_of_one_pass(
    make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gradients = {}
    for seconds in (None, 1.5):
        config = make_config("ks,er", **UNCLIPPED, runner__max_pass_seconds=seconds)
        runner = MultiTaskRunner(config, tmp_path / str(seconds))
        step = runner.training_step
        step.run.set_training(False)
        monkeypatch.setattr(step.run, "set_training", lambda training: None)
        monkeypatch.setattr(training_step, "update_parameters", lambda *_: None)
        runner.train_step()
        assert (step.run.skips.steps_in_parts > 0) == (seconds is not None)
        gradients[seconds] = {
            name: parameter.grad
            for name, parameter in runner.upstream.named_parameters()
            if parameter.grad is not None
        }
    torch.testing.assert_close(gradients[1.5], gradients[None], rtol=1e-4, atol=1e-6)


def test_accumulated_batches_give_the_mean_of_their_gradients(
    make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shared = {**UNCLIPPED, "optimizer__name": "SGD", "scheduler": None}
    updates = []
    for batch in range(2):
        runner = MultiTaskRunner(make_config("er", **shared), tmp_path / f"batch{batch}")
        for _ in range(batch):
            runner.training_step.loaders.draw()
        losses_of_a_draw(runner)[0].backward()
        updates.append(runner.tasks["er"].expert.projector.weight.grad)
    both = MultiTaskRunner(
        make_config("er", **shared, runner__gradient_accumulate_steps=2), tmp_path / "both"
    )
    step = both.training_step
    step.run.set_training(False)
    step.run.set_training = lambda training: None
    monkeypatch.setattr(training_step, "update_parameters", lambda *_: None)
    both.train_step()
    grad = both.tasks["er"].expert.projector.weight.grad
    torch.testing.assert_close(grad, (updates[0] + updates[1]) / 2, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("tasks", "steps"),
    [
        ("ks,asr,sv", 14),
        pytest.param("all", 40, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    make_config, tmp_path: Path, tasks: str, steps: int
):
    half = steps // 2
    # The corpus is tiny: epochs of some tasks end in the first half.
    config = make_config(
        tasks, runner__total_steps=steps, runner__save_step=half, runner__log_step=half
    )
    whole = tmp_path / "whole"
    MultiTaskRunner(config, whole).train()

    saved = checkpoints.load(whole / f"states-{half}.ckpt")
    assert any(place["epoch"] > 0 for place in saved.training.streams.values())
    torch.rand(17)  # The random state has to come from the checkpoint.
    resumed = tmp_path / "resumed"
    MultiTaskRunner(config, resumed, resume=saved).train()

    name = f"states-{steps}.ckpt"
    assert_same(checkpoints.load(whole / name), checkpoints.load(resumed / name))


def test_training_does_not_depend_on_the_number_of_loader_workers(make_config, tmp_path: Path):
    earlier = set(multiprocessing.active_children())  # of other tests
    # Two draws a step; epochs of `er` end within the run.
    settings = {
        "runner__total_steps": 6,
        "runner__save_step": 3,
        "runner__gradient_accumulate_steps": 2,
    }

    def saved(run: str, workers: int, resume: RunCheckpoint | None = None) -> RunCheckpoint:
        config = make_config("ks,asr,er", runner__num_workers=workers, **settings)
        MultiTaskRunner(config, tmp_path / run, resume=resume).train()
        return replace(checkpoints.load(tmp_path / run / "states-6.ckpt"), config={})

    alone = saved("alone", 0)
    assert_same(alone, saved("helped", 2))
    half = checkpoints.load(tmp_path / "helped" / "states-3.ckpt")
    assert_same(alone, saved("resumed", 1, resume=half))
    assert set(multiprocessing.active_children()) <= earlier


def test_a_run_that_is_short_of_memory_resumes_bit_for_bit(
    make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Dropout draws other numbers in two micro-batches than in one.
    encode = SharedEncoder.hidden_states

    def limited(encoder: SharedEncoder, wavs: list, masks: Sequence = ()) -> HiddenStates:
        if torch.is_grad_enabled() and len(wavs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(encoder, wavs, masks)

    monkeypatch.setattr(SharedEncoder, "hidden_states", limited)
    config = make_config("ks,er", runner__total_steps=4, runner__save_step=2)
    MultiTaskRunner(config, tmp_path / "whole").train()
    saved = checkpoints.load(tmp_path / "whole" / "states-2.ckpt")
    assert saved.training.micro_batches["parts"] > 1
    MultiTaskRunner(config, tmp_path / "resumed", resume=saved).train()
    whole, resumed = (
        checkpoints.load(tmp_path / run / "states-4.ckpt") for run in ("whole", "resumed")
    )
    assert whole.training.micro_batches["steps"] == 4
    assert_same(whole, resumed)
    # Checkpoints of earlier versions do not have the entries.
    training = replace(saved.training, balancer=None, micro_batches=None)
    older = replace(saved, training=training)
    MultiTaskRunner(config, tmp_path / "older", resume=older).train()


def test_a_frozen_encoder_does_not_move_and_the_heads_do(make_config, tmp_path: Path):
    config = make_config("ks", upstream__freeze=True, runner__total_steps=2)
    runner = MultiTaskRunner(config, tmp_path)
    encoder = {n: v.clone() for n, v in runner.upstream.state_dict().items()}
    head = runner.tasks["ks"].expert.projector.weight.clone()
    runner.train()
    assert_same(encoder, dict(runner.upstream.state_dict()))
    assert not torch.equal(head, runner.tasks["ks"].expert.projector.weight)


def test_the_best_checkpoint_evaluates_its_task_without_its_corpus(
    make_config, tmp_path: Path, tiny_corpus: Path
):
    config = make_config("ks,sd", runner__total_steps=2, runner__eval_step=1)
    results = MultiTaskRunner(config, tmp_path).train()
    best = checkpoints.load(tmp_path / "ks" / "dev-best.ckpt")
    assert set(best.tasks) == {"ks"}
    away = json.loads(json.dumps({**config, "downstream": ["ks"]}))
    away["ks"]["downstream_expert"]["datarc"]["speech_commands_root"] = "/nowhere"
    away["ks"]["downstream_expert"]["datarc"]["speech_commands_test_root"] = "/nowhere"
    runner = MultiTaskRunner(away, tmp_path / "away", resume=best)
    features = [torch.randn(30, runner.featurizer.output_dim)]
    records = defaultdict(list)
    runner.tasks["ks"].expert("test", features, [3], records=records)
    assert len(records["hypothesis"]) == 1
    best_score = best.tasks["ks"].head["best_score"].item()
    assert results["ks"]["dev"]["acc"] <= best_score + 1e-6

    back = MultiTaskRunner({**config, "downstream": ["ks"]}, tmp_path / "back", resume=best)
    with Recorder(tmp_path / "back") as recorder:
        back.evaluate([("ks", "dev")], recorder)
    again = read_results(tmp_path / "back")["ks"]["dev"]["acc"]
    assert again == pytest.approx(best_score)


def test_the_decision_of_sd_on_dev_is_saved_in_the_checkpoint(make_config, tmp_path: Path):
    config = make_config("sd", runner__total_steps=1)
    runner = MultiTaskRunner(config, tmp_path)
    runner.train()
    chosen = runner.tasks["sd"].expert.decision
    assert set(chosen) == {"threshold", "median_filter"}
    saved = checkpoints.load(tmp_path / "states-1.ckpt")
    assert (
        MultiTaskRunner(config, tmp_path / "b", resume=saved).tasks["sd"].expert.decision == chosen
    )


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_with_a_non_finite_gradient_is_skipped_and_counted(
    fused: bool, make_config, tmp_path: Path
):
    config = make_config("er", runner__total_steps=5)
    config["optimizer"] = {**config["optimizer"], "fused": fused}
    runner = MultiTaskRunner(config, tmp_path)
    runner.train_step()
    weights = {n: p.clone() for n, p in runner.tasks["er"].expert.state_dict().items()}
    for parameter in runner.upstream.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    states = runner.training_step.optimizer.state
    steps = {parameter: int(state["step"]) for parameter, state in states.items()}
    step = runner.training_step
    norm = clip_gradients(runner.run, step.balancer, limit=1.0)
    update_parameters(runner.run, step.optimizer, step.scheduler, norm)
    assert runner.run.skips.skipped_steps == 1
    assert all(int(state["step"]) == steps.get(p, 0) for p, state in states.items())
    assert_same(weights, dict(runner.tasks["er"].expert.state_dict()))
    runner.train_step()
    assert runner.run.skips.skipped_steps == 1


def test_all_problems_with_the_data_are_one_report(make_config, tmp_path: Path):
    config = make_config("ks,er,sv")
    config["ks"]["downstream_expert"]["datarc"]["speech_commands_root"] = "/no/commands"
    config["er"]["downstream_expert"]["datarc"]["root"] = "/no/iemocap"
    with user_error("several") as caught:
        MultiTaskRunner(config, tmp_path)
    text = str(caught.value)
    assert "ks: /no/commands" in text and "er: /no/iemocap" in text
    assert "datarc.root" in text
    assert "sv:" not in text


def test_every_split_is_checked_before_the_first_step(
    make_config, tmp_path: Path, tiny_corpus: Path
):
    corpus = tmp_path / "corpus"
    for name in ("speech_commands_v0.01", "speech_commands_test_set_v0.01"):
        shutil.copytree(tiny_corpus / name, corpus / name)
    shutil.copytree(tiny_corpus / "IEMOCAP_full_release", corpus / "IEMOCAP_full_release")
    for path in (corpus / "speech_commands_test_set_v0.01").rglob("*.wav"):
        path.write_bytes(b"")
    config = make_config("ks,er", data=str(corpus), cache_dir=str(tmp_path / "cache"))
    config["er"]["test_splits"] = ["tset"]
    runner = MultiTaskRunner(config, tmp_path / "run")
    with user_error("several") as caught:
        runner.train()
    assert "ks test:" in str(caught.value) and "er tset:" in str(caught.value)
    assert runner.step == 0


def test_a_run_starts_from_the_weights_of_another(make_config, tmp_path: Path):
    first = MultiTaskRunner(make_config("ks,er", runner__total_steps=1), tmp_path / "first")
    first.train()
    config = make_config("er,sid", init_ckpt=str(tmp_path / "first"))
    second = MultiTaskRunner(config, tmp_path / "second")
    states = checkpoints.load(second.save())
    assert_same(dict(first.upstream.state_dict()), dict(second.upstream.state_dict()))
    donated = dict(first.tasks["er"].expert.state_dict())
    taken = dict(second.tasks["er"].expert.state_dict())
    assert donated.pop("best_score") > 0
    assert taken.pop("best_score") == 0, "this run has its own best checkpoint"
    assert_same(donated, taken)
    # A resumed run does not need them.
    gone = {**config, "init_ckpt": str(tmp_path / "gone")}
    MultiTaskRunner(gone, tmp_path / "later", resume=states)
    encoder_only = make_config("sid", init_upstream_ckpt=str(tmp_path / "first"))
    third = MultiTaskRunner(encoder_only, tmp_path / "third")
    assert_same(dict(first.upstream.state_dict()), dict(third.upstream.state_dict()))


def test_heads_of_single_task_runs_are_found_where_the_branch_expects_them(
    make_config, tmp_path: Path
):
    donor = MultiTaskRunner(make_config("ks,ic", seed=5), tmp_path / "donor")
    for task in ("ks", "ic"):
        (tmp_path / "heads" / task).mkdir(parents=True)
        state = {"Downstream": donor.tasks[task].expert.state_dict()}
        torch.save(state, tmp_path / "heads" / task / f"hubert_tiny_{task}.ckpt")
    config = make_config("ks,ic", init_ckpt=str(tmp_path / "heads"))
    runner = MultiTaskRunner(config, tmp_path / "run")
    for task in ("ks", "ic"):
        assert_same(
            dict(donor.tasks[task].expert.state_dict()),
            dict(runner.tasks[task].expert.state_dict()),
        )
    with user_error("checkpoint-missing", where=r"-i .*heads", fix=r"hubert_tiny_<task>"):
        MultiTaskRunner(make_config("er", init_ckpt=str(tmp_path / "heads")), tmp_path / "x")


def test_a_head_of_s3prl_with_an_empty_slot_starts_a_run(make_config, tmp_path: Path):
    donor = MultiTaskRunner(make_config("sf", seed=5), tmp_path / "donor")
    own = dict(donor.tasks["sf"].expert.state_dict())
    head = {
        name: torch.cat([value, value[:2]]) if name.startswith("model.linear.") else value
        for name, value in own.items()
    }
    (tmp_path / "heads" / "sf").mkdir(parents=True)
    torch.save({"Downstream": head}, tmp_path / "heads" / "sf" / "hubert_tiny_sf.ckpt")
    started = MultiTaskRunner(
        make_config("sf", init_ckpt=str(tmp_path / "heads")), tmp_path / "started"
    )
    assert_same(own, dict(started.tasks["sf"].expert.state_dict()))


def test_weights_of_another_size_are_refused(make_config, tmp_path: Path):
    donor = MultiTaskRunner(make_config("ks", runner__total_steps=1), tmp_path / "donor")
    donor.save()
    config = make_config("ks", init_ckpt=str(tmp_path / "donor"))
    config["ks"]["downstream_expert"]["modelrc"]["projector_dim"] = 7
    with user_error("checkpoint-mismatch", where="-i") as caught:
        MultiTaskRunner(config, tmp_path / "run")
    assert re.search(r"\bks\b", caught.value.what) and "projector" in caught.value.what


@pytest.mark.slow
def test_bf16_trains_to_nearly_the_same_losses(make_config, tmp_path: Path):
    losses = {}
    for precision in ("fp32", "bf16"):
        config = make_config("ks,asr", precision=precision, runner__total_steps=5)
        runner = MultiTaskRunner(config, tmp_path / precision)
        losses[precision] = [sum(runner.train_step().losses.values()) for _ in range(3)]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


def test_the_encoder_state_has_the_names_of_s3prl(make_config, tmp_path: Path):
    runner = MultiTaskRunner(make_config("ks", runner__total_steps=1), tmp_path)
    saved = checkpoints.load(runner.save())
    assert all(name.startswith("model.") for name in saved.upstream)
    assert_same(encoder_weights(saved.upstream), dict(runner.upstream.state_dict()))


@pytest.mark.parametrize(
    ("steps", "scheduler", "is_said"),
    [(2, True, False), (3, True, True), (1, True, True), (3, False, False)],
)
def test_another_end_of_the_decay_is_said_when_a_run_is_resumed(
    steps: int,
    scheduler: bool,
    is_said: bool,
    make_config,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    flags = {} if scheduler else {"scheduler": None}
    config = make_config("ks", runner__total_steps=2, runner__save_step=1, **flags)
    MultiTaskRunner(config, tmp_path).train()
    saved = checkpoints.load(tmp_path / ("states-1.ckpt" if steps == 1 else "states-2.ckpt"))
    config["runner"]["total_steps"] = steps
    caplog.clear()
    caplog.set_level(logging.INFO)
    MultiTaskRunner(config, tmp_path / "more", resume=saved).train()
    said = [r for r in caplog.records if r.name == "s3prl_mtl.checkpoint.compatibility"]
    assert bool(said) == is_said
    assert all(("finished" in r.getMessage()) == (saved.step == 2) for r in said)
    (summary,) = summaries(caplog)
    announced = [saved.step + 1, steps] if steps > saved.step else [saved.step]
    assert re.findall(r"\d+", summary[0]) == [str(step) for step in announced]
