"""HuBERT against fairseq's own outputs and gradients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s3prl_mtl.upstreams.hubert import convolutions, segments
from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.encoder import Hubert, hubert_from_state
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert
from tests.mistakes import user_error

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hubert"
GOLDEN = ["base_style", "large_style"]
ODD = ["odd_base", "odd_large", "odd_frozen"]
PADDINGS = [0.0, 0.3, 1.0]


def expected(case: str) -> dict[str, Any]:
    return torch.load(FIXTURES / f"{case}.expected.pt", weights_only=True)


def expected_gradients(case: str) -> dict[str, Tensor]:
    if case in GOLDEN:
        return torch.load(FIXTURES / f"{case}.gradients.pt", weights_only=True)
    return expected(case)["gradients"]


def encoder(case: str) -> Hubert:
    return load_hubert(FIXTURES / f"{case}.pt").eval()


def allow_padding(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(segments, "MAX_PADDING", share)


def assert_all_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", GOLDEN + ODD)
def test_each_utterance_alone_equals_fairseq(case: str) -> None:
    model, truth = encoder(case), expected(case)
    with torch.no_grad():
        assert_all_close([model([wav]).states for wav in truth["wavs"]], truth["hidden_states"])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
@pytest.mark.parametrize("case", GOLDEN + ODD)
def test_features_do_not_depend_on_the_batch(
    case: str, order: list[int], padding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_padding(monkeypatch, padding)
    model, truth = encoder(case), expected(case)
    with torch.no_grad():
        hidden = model([truth["wavs"][index] for index in order])
    wanted = [truth["hidden_states"][index] for index in order]
    assert hidden.lengths == [states.shape[1] for states in wanted]
    assert_all_close(hidden.split(), wanted)
    assert_all_close(hidden.layer(-1), [states[-1] for states in wanted])


def test_loud_or_silent_neighbours_do_not_leak() -> None:
    for case in GOLDEN:
        model, truth = encoder(case), expected(case)
        wav = truth["wavs"][2]
        neighbours = [torch.zeros(5000), 1e3 * truth["wavs"][0], torch.ones(401)]
        with torch.no_grad():
            hidden = model([neighbours[0], wav, *neighbours[1:]])
        assert_all_close([hidden.split()[1]], [truth["hidden_states"][2]])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("case", GOLDEN + ODD)
def test_gradients_of_a_batch_equal_fairseqs_sum_over_its_utterances(
    case: str, padding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_padding(monkeypatch, padding)
    model = encoder(case)
    hidden = model(expected(case)["wavs"])
    loss = torch.zeros(())
    for states in hidden.split():
        loss = loss + (states * torch.arange(states.numel()).cos().view(states.shape)).sum()
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    wanted = expected_gradients(case)
    assert set(found) == set(wanted)
    if case == "odd_frozen":
        assert not any(name.startswith("feature_extractor") for name in found)
    # Biases of keys and before a GroupNorm have no effect: their gradients are rounding errors.
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 2e-5, name


def test_feature_grad_mult_scales_the_gradients_of_the_convolutions_only() -> None:
    wavs = expected("base_style")["wavs"][:2]
    gradients = {}
    for factor in (1.0, 0.1, 0.0):
        model = load_hubert(FIXTURES / "base_style.pt", feature_grad_mult=factor).eval()
        model(wavs).states[-1].square().sum().backward()
        gradients[factor] = {name: p.grad for name, p in model.named_parameters()}
    for name, gradient in gradients[1.0].items():
        if gradient is None:
            continue
        if name.startswith("feature_extractor"):
            torch.testing.assert_close(gradients[0.1][name], 0.1 * gradient)
            assert gradients[0.0][name] is None
        else:
            torch.testing.assert_close(gradients[0.1][name], gradient)
            torch.testing.assert_close(gradients[0.0][name], gradient)


@pytest.mark.parametrize("case", GOLDEN)
def test_gradients_agree_with_finite_differences(case: str) -> None:
    model = encoder(case).double()
    wavs = [wav[:1200].double() for wav in expected(case)["wavs"][:2]]
    parameter = model.feature_extractor.conv_layers[0][0].weight

    def loss() -> Tensor:
        return model(wavs).states.pow(3).sum()

    loss().backward()
    assert parameter.grad is not None
    step = 1e-6
    for index in [(0, 0, 0), (3, 0, 7)]:
        with torch.no_grad():
            parameter[index] += step
            above = loss()
            parameter[index] -= 2 * step
            below = loss()
            parameter[index] += step
        slope = (above - below) / (2 * step)
        torch.testing.assert_close(parameter.grad[index], slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", GOLDEN)
def test_dropout_is_active_in_training_only(case: str) -> None:
    model = encoder(case)
    assert model.config.dropout > 0
    wav = [expected(case)["wavs"][2]]
    with torch.no_grad():
        assert torch.equal(model(wav).states, model(wav).states)
        model.train()
        assert not torch.allclose(model(wav).states, model(wav).states, atol=1e-3)


def test_layerdrop_is_off_unless_asked_for() -> None:
    assert load_hubert(FIXTURES / "base_style.pt").config.encoder_layerdrop == 0.0
    model = load_hubert(FIXTURES / "base_style.pt", layerdrop=0.999).train()
    torch.manual_seed(0)
    states = model([expected("base_style")["wavs"][2]]).states
    assert len(states) == model.num_hidden_states
    assert torch.equal(states[0], states[1])  # A dropped layer passes its input on.
    model.eval()
    with torch.no_grad():
        hidden = model([expected("base_style")["wavs"][2]])
    assert_all_close([hidden.states], [expected("base_style")["hidden_states"][2]])


@pytest.mark.parametrize("case", GOLDEN)
def test_bfloat16_autocast_stays_near_float32_and_trains(case: str) -> None:
    model, truth = encoder(case), expected(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model(truth["wavs"])
    assert hidden.states.dtype == torch.bfloat16
    for found, wanted in zip(hidden.split(), truth["hidden_states"], strict=True):
        assert (found - wanted).norm() < 0.05 * wanted.norm()
    hidden.states.square().sum().backward()
    gradient = model.feature_extractor.conv_layers[0][0].weight.grad
    assert gradient is not None and bool(gradient.isfinite().all())


@pytest.mark.parametrize("case", GOLDEN + ODD)
@pytest.mark.parametrize("elements", [1, 40_000, 2**29])
def test_long_batches_are_cut_without_changing_the_result(
    case: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "MAX_ELEMENTS", {"cpu": elements, "cuda": elements})
    model, truth = encoder(case), expected(case)
    with torch.no_grad():
        assert_all_close(model(truth["wavs"]).split(), truth["hidden_states"])


def test_too_short_utterance_is_named() -> None:
    model = encoder("base_style")
    with user_error("audio-too-short", where=r"\b1\b.*\b2\b", fix=r"\b400\b"):
        model([torch.zeros(400), torch.zeros(399)])
    assert model([torch.randn(400)]).lengths == [1]


def test_waveforms_of_another_shape_are_refused() -> None:
    model = encoder("base_style")
    with pytest.raises(ValueError):
        model([torch.zeros(1, 4000)])
    with pytest.raises(ValueError):
        model([])


@pytest.mark.parametrize(
    ("samples", "frames"), [(399, 0), (400, 1), (719, 1), (720, 2), (16_000, 49)]
)
def test_frames_follow_floor_arithmetic(samples: int, frames: int) -> None:
    assert HubertConfig().num_frames(samples) == frames
    assert HubertConfig().receptive_field == 400
    assert HubertConfig().total_stride == 320


@pytest.mark.parametrize("case", GOLDEN + ODD)
def test_encoder_is_rebuilt_from_plain_values(case: str, tmp_path: Path) -> None:
    model, truth = encoder(case), expected(case)
    path = tmp_path / "run.ckpt"
    torch.save({"info": model.checkpoint_info, "state": model.state_dict()}, path)
    kept = torch.load(path, weights_only=True)
    rebuilt = hubert_from_state(kept["info"], kept["state"]).eval()
    assert rebuilt.config == model.config
    with torch.no_grad():
        assert_all_close(rebuilt(truth["wavs"]).split(), truth["hidden_states"])


def test_parameters_that_do_not_fit_are_named() -> None:
    model = encoder("base_style")
    state = model.state_dict()
    del state["mask_emb"]
    state["mask_embedding"] = torch.zeros(2)
    state["final_proj.bias"] = torch.zeros(1)
    with user_error("checkpoint-mismatch") as caught:
        hubert_from_state(model.checkpoint_info, state)
    for name in ("mask_emb", "mask_embedding", "final_proj.bias"):
        assert re.search(rf"\b{name}\b", caught.value.what)


@pytest.mark.parametrize("case", GOLDEN)
def test_checkpointed_activations_give_the_same_gradients(case: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = load_hubert(FIXTURES / f"{case}.pt").train()
        if checkpointing:
            model.checkpoint_activations()
        model(expected(case)["wavs"]).states.square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ["odd_base", "odd_large"])
def test_the_layer_of_a_parameter_is_the_first_hidden_state_that_depends_on_it(case: str):
    model = load_hubert(FIXTURES / f"{case}.pt", feature_grad_mult=1.0).eval()
    parameters = dict(model.named_parameters())
    states = model([0.1 * torch.randn(4000)]).layers
    first: dict[str, int] = {}
    for index, state in enumerate(states):
        gradients = torch.autograd.grad(
            (state * torch.randn(state.shape)).sum(),
            list(parameters.values()),
            retain_graph=True,
            allow_unused=True,
        )
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                first.setdefault(name, index)
    layers = model.parameter_layers()
    assert layers.keys() == parameters.keys()
    # The input of the first layer depends on the front end, 0, and on the other inputs, 1.
    convolutions = {name for name in first if name.startswith("feature_extractor.")}
    assert {name for name, layer in layers.items() if layer == 0} == convolutions
    for name, index in first.items():
        assert layers[name] == (0 if name in convolutions else max(index, 1)), name
