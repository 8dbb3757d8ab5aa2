"""The weighted sum over layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from s3prl_mtl.upstreams.base import HiddenStates, Upstream
from s3prl_mtl.upstreams.featurizer import Featurizer
from tests.mistakes import user_error

LENGTHS = [3, 1, 5]


class FixedUpstream(Upstream):
    """Three random hidden states of width 4."""

    hidden_size = 4
    num_hidden_states = 3
    downsample_rate = 320

    def forward(self, wavs: list[Tensor]) -> HiddenStates:
        generator = torch.Generator().manual_seed(0)
        return HiddenStates(torch.randn(3, sum(LENGTHS), 4, generator=generator), LENGTHS)


@pytest.fixture
def hidden() -> HiddenStates:
    return FixedUpstream()([torch.zeros(1)])


@pytest.mark.parametrize(("selection", "first"), [("hidden_states", 0), ("layer_results", 1)])
def test_features_start_as_the_mean_of_the_selected_layers(
    hidden: HiddenStates, selection: str, first: int
) -> None:
    featurizer = Featurizer(FixedUpstream(), selection)
    features = featurizer(hidden)
    assert [len(one) for one in features] == LENGTHS
    torch.testing.assert_close(torch.cat(features), hidden.states[first:].mean(0))
    assert featurizer.layer_weights() == pytest.approx([1 / (3 - first)] * (3 - first))
    assert (featurizer.output_dim, featurizer.downsample_rate) == (4, 320)
    assert list(featurizer.state_dict()) == ["weights"]


def test_weights_are_normalised_by_softmax(hidden: HiddenStates) -> None:
    featurizer = Featurizer(FixedUpstream())
    with torch.no_grad():
        featurizer.weights.copy_(torch.tensor([0.0, math.log(2.0), math.log(5.0)]))
    wanted = (hidden.states[0] + 2 * hidden.states[1] + 5 * hidden.states[2]) / 8
    torch.testing.assert_close(torch.cat(featurizer(hidden)), wanted)
    assert featurizer.layer_weights() == pytest.approx([1 / 8, 2 / 8, 5 / 8])


def test_last_hidden_state_has_no_weights(hidden: HiddenStates) -> None:
    featurizer = Featurizer(FixedUpstream(), "last_hidden_state")
    assert torch.equal(torch.cat(featurizer(hidden)), hidden.states[-1])
    assert featurizer.layer_weights() == []
    assert not list(featurizer.parameters())


def test_autocast_does_not_round_the_sum(hidden: HiddenStates) -> None:
    featurizer = Featurizer(FixedUpstream())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = torch.cat(featurizer(hidden))
    torch.testing.assert_close(features, hidden.states.mean(0))


def test_gradients_reach_weights_and_states(hidden: HiddenStates) -> None:
    featurizer = Featurizer(FixedUpstream())
    states = hidden.states.requires_grad_()
    torch.cat(featurizer(HiddenStates(states, hidden.lengths))).sum().backward()
    sums = states.detach().sum((1, 2))
    torch.testing.assert_close(featurizer.weights.grad, (sums - sums.mean()) / 3)
    torch.testing.assert_close(states.grad, torch.full((3, 9, 4), 1 / 3))


def test_rows_in_another_order_are_returned_in_that_of_the_waveforms(hidden: HiddenStates) -> None:
    states, (first, *others) = hidden.states, hidden.lengths
    moved = torch.cat([states[:, first:], states[:, :first]], dim=1)
    found = HiddenStates(list(moved), [*others, first], [*range(1, len(others) + 1), 0])
    assert found.lengths == hidden.lengths
    torch.testing.assert_close(found.states, states)
    torch.testing.assert_close(found.layer(1), hidden.layer(1))
    featurizer = Featurizer(FixedUpstream())
    torch.testing.assert_close(featurizer(found), featurizer(hidden))


def test_unknown_selection_names_the_nearest() -> None:
    with user_error("unknown-name", where="-s ", fix="'hidden_states'"):
        Featurizer(FixedUpstream(), "hiden_states")


def test_layer_results_of_a_single_state_are_refused() -> None:
    upstream = FixedUpstream()
    upstream.num_hidden_states = 1
    with user_error("conflicting-options", where="-s ", fix="'hidden_states'"):
        Featurizer(upstream, "layer_results")
