"""Weighted sums of losses against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from s3prl_mtl.balancing import make_balancer
from s3prl_mtl.balancing.weighted import Uncertainty
from tests.balancing.nine_tasks import NINE, Network, take
from tests.mistakes import user_error


def test_fixed_weights_scale_the_loss_of_a_task_and_are_1_elsewhere():
    balancer = make_balancer({"name": "fixed", "task3": 0.3, "task4": 2}, NINE)
    network, plain = take(balancer, step=1), Network()
    losses = plain.losses(1)
    (sum(losses.values()) - 0.7 * losses["task3"] + losses["task4"]).backward()
    for ours, expected in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    assert balancer.metrics()["weight_task3"] == pytest.approx(0.3)


def test_a_weight_of_another_task_or_below_0_is_an_error():
    with user_error("unknown-name", where="balancer.taks3", fix="task3"):
        make_balancer({"name": "fixed", "taks3": 1}, NINE)
    for weight in (-1, "much", True, math.nan, math.inf):
        with user_error("invalid-value", where="balancer.task3"):
            make_balancer({"name": "fixed", "task3": weight}, NINE)


def test_weights_of_0_for_all_tasks_are_an_error():
    with user_error("invalid-value", where="balancer fixed"):
        make_balancer({"name": "fixed", "a": 0, "b": 0.0}, ["a", "b"])
    make_balancer({"name": "fixed", "a": 0}, ["a", "b"])


@pytest.mark.parametrize("tasks", [NINE, NINE[2:7]], ids=len)
def test_uncertainty_follows_the_formula_of_the_branch(tasks: list[str]):
    balancer = Uncertainty(NINE)
    assert not balancer.log_sigma.any()
    start = [0.2 * number - 0.5 for number in range(9)]
    balancer.log_sigma.data = torch.tensor(start)
    network = take(balancer, step=2, tasks=tasks)
    plain = Network()
    # In Python numbers and autograd: loss / exp(log_sigma)^2 + log_sigma, summed.
    sigmas = {
        task: torch.tensor(s, requires_grad=True) for task, s in zip(NINE, start, strict=True)
    }
    losses = plain.losses(2, tasks)
    sum(loss / sigmas[t].exp() ** 2 + sigmas[t] for t, loss in losses.items()).backward()
    for ours, expected in zip(network.parameters(), plain.parameters(), strict=True):
        if expected.grad is None:
            assert ours.grad is None
        else:
            torch.testing.assert_close(ours.grad, expected.grad)
    for task, ours in zip(NINE, balancer.log_sigma.grad.tolist(), strict=True):
        assert ours == pytest.approx(0.0 if task not in tasks else sigmas[task].grad.item(), 1e-5)
    logged = balancer.metrics()
    assert logged["sigma_task0"] == pytest.approx(math.exp(-0.5))
    assert logged["weight_task0"] == pytest.approx(math.exp(1.0))
