"""Every method of torchjd against torchjd called directly, over several steps."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torchjd import aggregation, scalarization

from s3prl_mtl.balancing import Balancer
from s3prl_mtl.balancing.torchjd_balancers import torchjd_balancer
from s3prl_mtl.balancing.torchjd_methods import Method, methods_of, torchjd_methods
from s3prl_mtl.checkpoint.contents import on_cpu
from s3prl_mtl.data.sampling import derived_seed
from tests.balancing.nine_tasks import NINE, Network, take
from tests.mistakes import user_error

GROWING = {task: 0.5 + 0.25 * number for number, task in enumerate(NINE)}
OPTIONS: dict[str, dict[str, Any]] = {
    "cagrad": {"c": 0.5},
    "constant": {"weights": GROWING},
    "cosmos": {"lambda_": 0.5, "weights": GROWING},
    "dwa": {"epoch_steps": 1},
    "fairgrad": {"alpha": 2.0},
    "krum": {"n_byzantine": 2},
    "pbi": {"theta": 2, "weights": GROWING},
    "stch": {"mu": 0.5, "weights": GROWING},
    "trimmedmean": {"trim_number": 2},
}
AGGREGATORS = methods_of(aggregation, aggregation.Aggregator, "gradient")
SCALARIZERS = methods_of(scalarization, scalarization.Scalarizer, "loss")
STEPS = 4


def directly(method: Method) -> Any:
    """The object of torchjd, as its documentation builds it."""
    arguments = {
        name: torch.tensor([value[task] for task in NINE]) if isinstance(value, dict) else value
        for name, value in OPTIONS.get(method.name, {}).items()
        if name != "epoch_steps"
    }
    if method.name in ("uw", "imtll", "famo"):
        arguments["shape"] = 9
    if method.name == "nashmtl":
        arguments["n_tasks"] = 9
    return method.kind(**arguments)


def balancer_of(method: Method) -> Balancer:
    if method.missing_package():
        pytest.skip(method.missing_package())
    return torchjd_balancer(method, NINE, OPTIONS.get(method.name, {}), seed=5)


def resumed(balancer: Balancer, method: Method, folder: Path) -> Balancer:
    """Another balancer with the state of a file that holds tensors and plain values only."""
    torch.save(on_cpu(balancer.state_dict()), folder / "state.pt")
    again = balancer_of(method)
    again.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return again


def same_draws(step: int) -> None:
    torch.manual_seed(derived_seed("balancer", 5, step))


@pytest.mark.parametrize("method", AGGREGATORS, ids=lambda method: method.name)
def test_an_aggregator_combines_the_jacobian_as_torchjd(method: Method, tmp_path: Path):
    balancer = balancer_of(method)
    expected = directly(method)
    for step in range(STEPS):
        if step == 2:
            balancer = resumed(balancer, method, tmp_path)
        network = take(balancer, step)
        jacobian = Network().jacobian(step)
        same_draws(step)
        torch.testing.assert_close(
            network.shared_gradient(), expected(jacobian), rtol=1e-4, atol=1e-6
        )
        plain = Network()
        sum(plain.losses(step).values()).backward()
        for ours, own in zip(network.heads.parameters(), plain.heads.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, own.grad)


KEEPING = [method for method in SCALARIZERS if method.keeps_gradients]


@pytest.mark.parametrize("method", [*AGGREGATORS, *KEEPING], ids=lambda m: f"{m.level}-{m.name}")
def test_two_ranks_combine_nine_tasks_as_one_process(method: Method):
    alone, ranks = balancer_of(method), [balancer_of(method) for _ in range(2)]
    for step in range(STEPS):
        whole, networks = take(alone, step), [Network() for _ in ranks]
        means = {task: loss.item() for task, loss in Network().losses(step).items()}
        parameters = [
            (list(n.shared.parameters()), {t: list(h.parameters()) for t, h in n.heads.items()})
            for n in networks
        ]
        for rank, (balancer, network) in enumerate(zip(ranks, networks, strict=True)):
            balancer.begin_step()
            for task in NINE:
                own = (slice(3), slice(3, 8))[rank]
                balancer.backward(network.losses(step, [task], own), *parameters[rank])
        for sums in zip(*(balancer.partial_sums() for balancer in ranks), strict=True):
            total = torch.stack(sums).sum(dim=0)
            for partial in sums:
                partial.copy_(total)
        for balancer, network, trained in zip(ranks, networks, parameters, strict=True):
            balancer.combine(means, *trained)
            torch.testing.assert_close(
                network.shared_gradient(), whole.shared_gradient(), rtol=1e-4, atol=1e-6
            )
        assert torch.equal(networks[0].shared_gradient(), networks[1].shared_gradient())


@pytest.mark.parametrize("method", SCALARIZERS, ids=lambda method: method.name)
def test_a_scalarizer_has_the_gradients_of_torchjd(method: Method, tmp_path: Path):
    balancer = balancer_of(method)
    expected = directly(method)
    for step in range(STEPS):
        if step == 2:
            balancer = resumed(balancer, method, tmp_path)
        network, plain = take(balancer, step), Network()
        losses = torch.stack(list(plain.losses(step).values()))
        if method.name == "famo" and step > 0:
            expected.update(losses)
        same_draws(step)
        expected.zero_grad()
        expected(losses).backward()
        if method.name == "dwa":
            expected.step()
        for ours, own in zip(network.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, own.grad, rtol=1e-4, atol=1e-6)
        learned = list(balancer.parameters())
        if method.name in ("uw", "imtll"):
            torch.testing.assert_close(learned[0].grad, next(expected.parameters()).grad)
            with torch.no_grad():
                learned[0] += 0.1 * (step + 1) * torch.arange(9)
                next(expected.parameters()).copy_(learned[0])
            learned[0].grad = None
        else:
            assert not learned


@pytest.mark.parametrize(
    "method", [*AGGREGATORS, *SCALARIZERS], ids=lambda m: f"{m.level}-{m.name}"
)
def test_a_step_without_a_task_leaves_the_state_as_it_is(method: Method):
    balancer = balancer_of(method)
    take(balancer, step=0)
    before = copy.deepcopy(balancer.state_dict())
    network = take(balancer, step=1, tasks=NINE[1:])
    assert torch.isfinite(network.shared_gradient()).all() and network.shared_gradient().any()
    assert all(p.grad is None for p in network.heads["task0"].parameters())
    after = balancer.state_dict()
    assert after["_extra_state"]["step"] == before["_extra_state"]["step"] + 1
    assert str(after["_extra_state"]["state"]) == str(before["_extra_state"]["state"])


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("uw", lambda s, loss: 0.5 * (-s).exp() * loss + 0.5 * s),
        ("imtll", lambda s, loss: s.exp() * loss - s),
    ],
)
@pytest.mark.parametrize("tasks", [NINE, NINE[3:6], NINE[7:8], []], ids=len)
def test_the_tasks_of_a_step_learn_their_own_weights(name: str, term: Any, tasks: list[str]):
    balancer = torchjd_balancer(torchjd_methods()[name], NINE, {})
    (learned,) = balancer.parameters()
    learned.data = torch.linspace(-1, 1, 9)
    network, plain = take(balancer, step=3, tasks=tasks), Network()
    own = {
        task: torch.tensor(s, requires_grad=True)
        for task, s in zip(NINE, learned.tolist(), strict=True)
    }
    losses = plain.losses(3, tasks)
    if not tasks:
        assert learned.grad is None
        return
    sum(term(own[task], loss) for task, loss in losses.items()).backward()
    for ours, expected in zip(network.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (expected.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, expected.grad)
    expected_grad = [own[t].grad.item() if t in tasks else 0.0 for t in NINE]
    torch.testing.assert_close(learned.grad, torch.tensor(expected_grad))


def test_dwa_weights_tasks_by_the_means_of_the_steps_that_had_them(tmp_path: Path):
    tasks = ["a", "b", "c"]
    settings = {"epoch_steps": 3, "temperature": 1.5}

    def new() -> Balancer:
        return torchjd_balancer(torchjd_methods()["dwa"], tasks, settings)

    balancer = new()
    steps: list[dict[str, float]] = [
        # An epoch of three steps.
        {"a": 1.0, "b": 2.0},
        {"a": 3.0, "b": 2.0, "c": 5.0},
        {"b": 8.0},
        # One that ends with its fourth step, the first with c.
        {"a": 1.0},
        {"a": 2.0, "b": 3.0},
        {},
        {"c": 4.0},
        {"a": 1.0, "c": 9.0},
    ]
    rates = torch.tensor([1.5 / 2.0, 3.0 / 4.0, 4.0 / 5.0])
    weights = 3 * (rates / 1.5).softmax(0)
    for number, losses in enumerate(steps):
        expected = weights if number == 7 else torch.ones(3)
        balancer.combine(losses, [], {})
        assert balancer.metrics() == {
            f"weight_{task}": pytest.approx(expected[tasks.index(task)].item()) for task in losses
        }
        torch.save(balancer.state_dict(), tmp_path / "state.pt")
        balancer = new()
        balancer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


@pytest.mark.parametrize(
    ("name", "options"), [("krum", {"n_byzantine": 6}), ("trimmedmean", {"trim_number": 4})]
)
def test_a_step_with_fewer_tasks_than_the_method_needs_takes_their_mean(
    name: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    balancer = torchjd_balancer(torchjd_methods()[name], NINE, options)
    take(balancer, step=0)
    assert not caplog.records
    network = take(balancer, step=1, tasks=NINE[1:])
    mean = Network().jacobian(1, NINE[1:]).mean(dim=0)
    torch.testing.assert_close(network.shared_gradient(), mean)
    assert name in caplog.text
    assert not any(key.startswith("weight") for key in balancer.metrics())


def test_logged_weights_are_those_of_the_last_step_and_its_tasks():
    for name, options in (("graddrop", {}), ("upgrad", {}), ("stch", {"mu": 1.0}), ("random", {})):
        balancer = torchjd_balancer(torchjd_methods()[name], NINE, options, seed=5)
        for step, tasks in enumerate([NINE, NINE[2:5], []]):
            network = take(balancer, step, tasks)
            logged = balancer.metrics()
            logged.pop("conflicting_pairs", None)
            if name == "graddrop":  # It has no weights.
                assert logged == {}
                continue
            assert list(logged) == [f"weight_{task}" for task in tasks]
            if tasks:
                rows = Network().jacobian(step, tasks)
                weights = torch.tensor(list(logged.values()))
                torch.testing.assert_close(network.shared_gradient(), weights @ rows)


@pytest.mark.parametrize("method", AGGREGATORS, ids=lambda method: method.name)
def test_a_gradient_that_is_not_finite_reaches_the_step_and_not_the_state(
    method: Method, monkeypatch: pytest.MonkeyPatch
):
    balancer = balancer_of(method)
    take(balancer, step=0)
    before = str(balancer.state_dict()["_extra_state"]["state"])
    losses = Network.losses
    with monkeypatch.context() as patch:
        patch.setattr(
            Network,
            "losses",
            lambda *given: {t: loss * math.inf for t, loss in losses(*given).items()},
        )
        assert not torch.isfinite(take(balancer, step=1).shared_gradient()).any()
    assert str(balancer.state_dict()["_extra_state"]["state"]) == before
    assert torch.isfinite(take(balancer, step=2).shared_gradient()).all()


def test_uw_of_torchjd_is_the_formula_of_the_branch_with_another_start():
    uw = scalarization.UW(9)
    log_sigma = torch.linspace(-1, 1, 9)
    uw.log_var.data = 2 * log_sigma - math.log(2)
    losses = torch.arange(1.0, 10.0)
    branch = (losses / log_sigma.exp() ** 2 + log_sigma).sum()
    torch.testing.assert_close(uw(losses), branch - 9 * math.log(2) / 2)


def test_options_are_checked_against_the_constructor():
    methods = torchjd_methods()
    for name, options, code, where in [
        ("gradvac", {"bta": 0.1}, "unknown-key", "balancer.bta"),
        ("gradvac", {"beta": "much"}, "wrong-type", "balancer.beta"),
        ("gradvac", {"beta": 7.0}, "invalid-value", "gradvac"),
        ("krum", {}, "missing-option", "krum"),
        ("krum", {"n_byzantine": 9}, "invalid-value", "krum"),
        ("stch", {"mu": 1, "weights": {"task0": 1}}, "missing-option", "balancer.weights"),
        ("stch", {"mu": math.nan}, "invalid-value", "balancer.mu"),
        ("stch", {"mu": 1, "weights": {**GROWING, "tsk": 1}}, "unknown-name", r"weights\.tsk"),
        ("stch", {"mu": 1, "weights": {**GROWING, "task3": -1}}, "invalid-value", "weights"),
        ("constant", {"weights": {**GROWING, "task3": -0.5}}, "invalid-value", "weights"),
        ("constant", {"weights": dict.fromkeys(NINE, 0)}, "invalid-value", "weights"),
        ("constant", {"weights": {**GROWING, "task3": math.inf}}, "invalid-value", "weights"),
        ("upgrad", {"pref_vector": {**GROWING, "task3": -1}}, "invalid-value", "pref_vector"),
        ("famo", {"lr": math.inf}, "invalid-value", "balancer.lr"),
        ("dwa", {"epoch_steps": 0}, "invalid-value", "balancer.epoch_steps"),
        ("upgrad", {"projector": "x"}, "unknown-key", "balancer.projector"),
        ("alignedmtl", {"scale_mode": "max"}, "wrong-type", "balancer.scale_mode"),
    ]:
        with user_error(code, where=where):
            torchjd_balancer(methods[name], NINE, options)


def test_the_remedy_for_an_option_by_task_names_the_tasks():
    for name, options, code in [
        ("constant", {"weights": 1}, "wrong-type"),
        ("constant", {"weights": {"task0": 1}}, "missing-option"),
    ]:
        with user_error(code, where=r"balancer\.weights", fix=r"weights\.task8="):
            torchjd_balancer(torchjd_methods()[name], NINE, options)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with user_error("missing-package", where="cagrad", fix=r"s3prl-mtl\[balancers\]"):
        torchjd_balancer(torchjd_methods()["cagrad"], NINE, {"c": 0.5})
