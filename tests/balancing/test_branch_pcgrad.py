"""`--pcgrad` in a step of a run against the rule of s3prl's multi-task branch, written out."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch

from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.training.forward import forward
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.balancing.test_pcgrad import projected
from tests.distributed.test_updates import make_config, weights_of, without_dropout

NINE = "asr,pr,sf,ks,ic,sid,er,sv,sd"
Gradients = dict[str, torch.Tensor]


def gradients_of_each_task(runner: MultiTaskRunner) -> tuple[dict[str, Gradients], Gradients]:
    """By task the gradients of encoder and featurizer, zeros where it has none; of all heads."""
    run = runner.run
    names = {parameter: name for name, parameter in named_parameters(runner).items()}
    shared: dict[str, Gradients] = {}
    heads: Gradients = {}
    for batch in runner.training_step.loaders.draw():
        records = {batch.task: defaultdict(list)}
        (loss,) = forward([batch], run.tasks, run.encoder, run.specaug, records)
        own = list(run.heads[batch.task])
        found = torch.autograd.grad(loss, [*run.shared, *own], allow_unused=True)
        for parameter, gradient in zip([*run.shared, *own], found, strict=True):
            value = torch.zeros_like(parameter) if gradient is None else gradient
            home = heads if parameter in set(own) else shared.setdefault(batch.task, {})
            home[names[parameter]] = value
    return shared, heads


def named_parameters(runner: MultiTaskRunner) -> dict[str, torch.nn.Parameter]:
    modules = {"encoder": runner.upstream, "featurizer": runner.featurizer}
    modules |= {name: task.expert for name, task in runner.tasks.items()}
    return {
        f"{prefix}/{name}": parameter
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
    }


def test_a_step_with_nine_tasks_follows_the_rule_of_the_branch(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    # Plain gradient descent with a rate of 1 and no clipping: the update is the gradient.
    config = make_config(
        tiny_corpus,
        manifest_cache,
        NINE,
        optimizer={"name": "SGD", "lr": 1.0},
        runner__gradient_clipping=1e9,
        balancer="pcgrad:per_parameter=true",
    )
    runners = [MultiTaskRunner(config, tmp_path / name) for name in ("step", "plain")]
    for runner in runners:
        without_dropout(runner)
    before = weights_of(runners[0])
    runners[0].train_step()
    after = weights_of(runners[0])

    shared, heads = gradients_of_each_task(runners[1])
    assert list(shared) == NINE.split(",")
    tensors = list(shared["asr"])
    generator = torch.Generator().manual_seed(derived_seed("pcgrad", config["seed"], 0))
    orders = torch.rand(len(tensors), 9, 9, generator=generator).argsort(dim=-1)
    conflicts = 0
    expected = dict(heads)
    for name, order in zip(tensors, orders.tolist(), strict=True):
        rows = torch.stack([own[name].flatten().double() for own in shared.values()])
        conflicts += int((rows @ rows.T < 0).sum())
        mean = sum(projected(rows, task, order[task]) for task in range(9)) / 9
        expected[name] = mean.view_as(before[name])
    assert conflicts > 100
    whole = sum(expected[name].square().sum() for name in tensors).sqrt()
    for name, gradient in expected.items():
        update = before[name] - after[name]
        # Differences of float32 weights are rounded.
        rounding = 2**-22 * before[name].norm() + 1e-6 * whole
        assert (update - gradient).norm() <= 1e-4 * gradient.norm() + rounding, name
