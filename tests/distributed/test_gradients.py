"""Gradients are summed over ranks during the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from s3prl_mtl.distributed.gradients import GradientSum
from s3prl_mtl.distributed.world import World
from tests.distributed.ranks import run_ranks

LAYERS = 6


def deep_network(dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(8, 8).to(dtypes[i % len(dtypes)]) for i in range(LAYERS))


def run_through(layers: nn.ModuleList, value: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        value = layer(value.to(layer.weight.dtype)).tanh()
    return value.float().sum()


def sending_order(world: World) -> tuple[list[list[str]], list[bool]]:
    """Which layers left during two backward passes, and whether anything was left for the end."""
    layers = deep_network()
    never = nn.Linear(8, 8)
    names = {p: f"{i}.{n}" for i, layer in enumerate(layers) for n, p in layer.named_parameters()}
    parameters = [*layers.parameters(), *never.parameters()]
    gradients = GradientSum([(world, parameters)], bucket_bytes=1)
    order: list[list[str]] = []
    rest: list[bool] = []
    for _ in range(2):
        sent: list[str] = []
        for bucket in gradients._buckets:
            send = bucket.send

            def note(bucket: Any = bucket, send: Any = send, sent: list[str] = sent) -> None:
                sent.append(names.get(bucket.parameters[0], "never"))
                send()

            bucket.send = note
        with gradients.overlapping():
            run_through(layers, torch.ones(1, 8) * (world.rank + 1)).backward()
        order.append(list(sent))
        gradients.finish()
        rest.append(len(sent) > len(order[-1]))
        for parameter in parameters:
            parameter.grad = None
    return order, rest


@pytest.mark.slow
def test_gradients_are_sent_during_the_backward_pass_last_layers_first():
    for order, rest in run_ranks(2, sending_order):
        first, second = order
        assert first == [], "what never gets a gradient holds up the first pass"
        layers = [int(name[0]) for name in second]
        assert len(second) == 2 * LAYERS, "all that has a gradient left before the end"
        assert layers == sorted(layers, reverse=True)
        assert rest == [True, True]


def used_by(rank: int, case: str, layers: nn.ModuleList) -> nn.ModuleList | None:
    """Unevenly: rank 0 goes through the first half, rank 1 through all, rank 2 does nothing."""
    if case == "uneven":
        return {0: layers[: LAYERS // 2], 1: layers, 2: None}[rank]
    return layers


def summed(world: World, case: str) -> dict[str, torch.Tensor | None]:
    mixed = (torch.float32, torch.bfloat16, torch.float64)
    layers = deep_network(mixed if case == "dtypes" else (torch.float32,))
    gradients = GradientSum([(world, layers.parameters())], bucket_bytes=300)
    value = torch.full((1, 8), float(world.rank + 1))
    used = used_by(world.rank, case, layers)
    if case == "accumulated":
        run_through(layers[:2], value * 3).backward()
    with gradients.overlapping():
        if used is not None:
            run_through(used, value).backward()
    gradients.finish()
    return {name: parameter.grad for name, parameter in layers.named_parameters()}


def test_sums_include_all_ranks_even_if_a_rank_has_no_gradient():
    for case, ranks in (("all", 2), ("dtypes", 2), ("uneven", 3), ("accumulated", 2)):
        mixed = (torch.float32, torch.bfloat16, torch.float64)
        layers = deep_network(mixed if case == "dtypes" else (torch.float32,))
        for rank in range(ranks):
            value = torch.full((1, 8), float(rank + 1))
            used = used_by(rank, case, layers)
            if case == "accumulated":
                run_through(layers[:2], value * 3).backward()
            if used is not None:
                run_through(used, value).backward()
        for answer in run_ranks(ranks, summed, case):
            for name, parameter in layers.named_parameters():
                tolerance = 2e-2 if parameter.dtype is torch.bfloat16 else 1e-6
                torch.testing.assert_close(
                    answer[name], parameter.grad, rtol=tolerance, atol=tolerance
                )
