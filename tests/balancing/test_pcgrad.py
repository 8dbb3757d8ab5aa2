"""PCGrad against its definition, written out with vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3prl_mtl.balancing.pcgrad import PCGrad, projection_weights
from tests.balancing.nine_tasks import NINE, Network, take


def projected(gradients: Tensor, own: int, order: list[int]) -> Tensor:
    """Algorithm 1 of Yu et al. 2020 for one task: project onto normal planes in an order."""
    gradient = gradients[own].clone()
    for other in order:
        product = gradient @ gradients[other]
        if other != own and product < 0:
            gradient -= product / gradients[other].square().sum() * gradients[other]
    return gradient


@pytest.mark.parametrize("seed", range(5))
def test_the_weights_of_several_matrices_are_those_of_the_projected_vectors(seed: int):
    torch.manual_seed(seed)
    matrices = [torch.randn(5, width, dtype=torch.float64) for width in (1, 2, 7, 30)]
    matrices[2][3] = 0.0  # a task without a gradient for a tensor
    orders = torch.rand(4, 5, 5).argsort(dim=-1)
    weights = projection_weights(torch.stack([m @ m.T for m in matrices]), orders)
    for matrix, row, order in zip(matrices, weights, orders, strict=True):
        expected = sum(projected(matrix, i, order[i].tolist()) for i in range(5))
        torch.testing.assert_close(row @ matrix, expected)


@pytest.mark.parametrize("step", range(4))
def test_two_tasks_are_projected_on_the_whole_vector_and_summed(step: int):
    tasks = NINE[:2]
    rows = Network().jacobian(step, tasks)
    expected = projected(rows, 0, [1]) + projected(rows, 1, [0])
    network = take(PCGrad(NINE), step, tasks)
    torch.testing.assert_close(network.shared_gradient(), expected)


@pytest.mark.parametrize("step", range(4))
def test_with_per_parameter_two_tasks_are_projected_by_tensor_and_averaged(step: int):
    tasks = NINE[:2]
    parts = Network().jacobian(step, tasks).split([30, 5], dim=1)
    expected = [(projected(part, 0, [1]) + projected(part, 1, [0])) / 2 for part in parts]
    network = take(PCGrad(NINE, per_parameter=True), step, tasks)
    torch.testing.assert_close(network.shared_gradient(), torch.cat(expected))


@pytest.mark.parametrize("per_parameter", [False, True])
def test_each_head_has_the_gradient_of_its_own_task(per_parameter: bool):
    network, plain = take(PCGrad(NINE, per_parameter), step=1), Network()
    sum(plain.losses(1).values()).backward()
    for ours, expected in zip(network.heads.parameters(), plain.heads.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


@pytest.mark.parametrize("per_parameter", [False, True])
def test_orders_are_random_and_follow_from_the_seed_and_the_saved_state(per_parameter: bool):
    first, other = PCGrad(NINE, per_parameter, seed=3), PCGrad(NINE, per_parameter, seed=4)
    torch.rand(3)  # the state of torch's own generator has no influence
    outcomes = [take(first, step=1).shared_gradient() for _ in range(3)]
    assert not torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], take(other, step=1).shared_gradient())
    again = PCGrad(NINE, per_parameter, seed=3)
    assert torch.equal(outcomes[0], take(again, step=1).shared_gradient())
    resumed = PCGrad(NINE, per_parameter, seed=3)
    resumed.load_state_dict(again.state_dict())
    assert torch.equal(outcomes[1], take(resumed, step=1).shared_gradient())
