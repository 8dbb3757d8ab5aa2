"""Balancers on a small network: the gradients that they leave."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from s3prl_mtl.balancing import Balancer, Sum
from tests.balancing.balancers import FixedWeights, LearnedWeights, PCGrad, pcgrad

TASKS = ["a", "b", "c"]


class Network(nn.Module):
    """A shared layer with one parameter that nobody uses, and a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.ModuleDict({"used": nn.Linear(6, 4), "unused": nn.Linear(2, 2)})
        self.heads = nn.ModuleDict({task: nn.Linear(4, 2) for task in TASKS})

    def losses(self, inputs: torch.Tensor, tasks: list[str]) -> dict[str, torch.Tensor]:
        hidden = self.shared["used"](inputs).tanh()
        return {task: (self.heads[task](hidden) ** 3).mean() for task in tasks}


INPUTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def gradients_of_each_task(tasks: list[str]) -> dict[str, Network]:
    """For each task the network after a backward pass of its loss alone."""
    networks = {}
    for task in tasks:
        networks[task] = Network()
        networks[task].losses(INPUTS, [task])[task].backward()
    return networks


def flat(network: Network) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in network.shared["used"].parameters()])


def balance(
    balancer: Balancer, tasks: list[str], parts: int = 1, abandoned: bool = False
) -> Network:
    """The network after one step of a balancer on one rank."""
    network = Network()
    shared = list(network.shared.parameters())
    heads = {task: list(head.parameters()) for task, head in network.heads.items()}
    if abandoned:
        balancer.begin_step()
        balancer.backward(network.losses(INPUTS, tasks), shared, heads)
        network.zero_grad(set_to_none=True)
    balancer.begin_step()
    means = dict.fromkeys(tasks, 0.0)
    for part in INPUTS.chunk(parts):
        losses = {task: loss / parts for task, loss in network.losses(part, tasks).items()}
        balancer.backward(losses, shared, heads)
        for task, loss in losses.items():
            means[task] += loss.item()
    balancer.combine(means, shared, heads)
    return network


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("tasks", [TASKS, ["a", "c"], ["b"]], ids=",".join)
@pytest.mark.parametrize("kind", [Sum, FixedWeights, PCGrad])
def test_the_shared_gradient_is_combined_and_each_head_has_its_own(
    kind: type[Balancer], tasks: list[str], parts: int
):
    alone = gradients_of_each_task(tasks)
    rows = [flat(network) for network in alone.values()]
    weights = {task: 1 + TASKS.index(task) if kind is FixedWeights else 1 for task in tasks}
    expected = (
        pcgrad(rows)
        if kind is PCGrad
        else sum(weights[task] * row for task, row in zip(tasks, rows, strict=True))
    )
    network = balance(kind(TASKS), tasks, parts, abandoned=True)
    torch.testing.assert_close(flat(network), expected, rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for p in network.shared["unused"].parameters())
    for task in TASKS:
        for name, parameter in network.heads[task].named_parameters():
            if task not in tasks:
                assert parameter.grad is None
                continue
            own = alone[task].heads[task].get_parameter(name).grad
            torch.testing.assert_close(parameter.grad, weights[task] * own, rtol=1e-5, atol=1e-7)


def test_the_tasks_of_the_example_conflict():
    rows = [flat(network) for network in gradients_of_each_task(TASKS).values()]
    assert not torch.allclose(pcgrad(rows), sum(rows), rtol=1e-2)


def test_the_share_of_conflicting_pairs_is_averaged_until_it_is_logged():
    balancer = PCGrad(TASKS)
    shares = []
    for tasks in (TASKS, ["a", "c"]):
        balance(balancer, tasks)
        rows = [flat(network) for network in gradients_of_each_task(tasks).values()]
        pairs = [bool(rows[i] @ rows[j] < 0) for i in range(len(rows)) for j in range(i)]
        shares.append(sum(pairs) / len(pairs))
    assert sum(shares) > 0
    assert balancer.metrics() == {"conflicting_pairs": pytest.approx(sum(shares) / 2)}
    assert balancer.metrics() == {}


def test_a_step_without_any_task_has_no_gradient():
    for kind in (Sum, FixedWeights, PCGrad):
        network = balance(kind(TASKS), [])
        assert all(p.grad is None for p in network.parameters())


def test_learned_weights_follow_their_closed_form():
    balancer = LearnedWeights(TASKS)
    network = balance(balancer, ["a", "c"])
    losses = network.losses(INPUTS, ["a", "c"])
    # d/ds of exp(-s) * loss + s at s = 0.
    expected = torch.tensor([1 - losses["a"].item(), 0.0, 1 - losses["c"].item()])
    torch.testing.assert_close(balancer.log_variances.grad, expected)
    assert balancer.metrics() == {"weight_a": 1.0, "weight_b": 1.0, "weight_c": 1.0}


def test_the_state_of_a_balancer_is_that_of_its_parameters_and_buffers():
    assert Sum(TASKS).state_dict() == {} and PCGrad(TASKS).state_dict() == {}
    balancer = LearnedWeights(TASKS)
    balancer.log_variances.data.fill_(0.5)
    other = LearnedWeights(TASKS)
    other.load_state_dict(balancer.state_dict())
    assert torch.equal(other.log_variances, balancer.log_variances)
