"""Balancers by name and option, also those of other packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from s3prl_mtl.balancing import GradientBalancer, Sum, check_steps, make_balancer
from s3prl_mtl.balancing.factory import balancer_settings, parse_balancer
from s3prl_mtl.config import build_config
from s3prl_mtl.data.task_sampling import tasks_of_steps
from tests.mistakes import user_error

THIRD = """
from s3prl_mtl.balancing import Sum


class DownstreamExpert(Sum):
    "Adds and logs."

    def __init__(self, tasks, factor=2.0, seed=0):
        super().__init__(tasks)
        self.factor, self.seed = factor, seed
"""


@pytest.mark.parametrize(
    ("text", "section"),
    [
        ("sum", {"name": "sum"}),
        ("PCGrad", {"name": "pcgrad"}),
        ("Geometric_Mean", {"name": "geometricmean"}),
        ("pcgrad:per_parameter=true", {"name": "pcgrad", "per_parameter": True}),
        ("fixed:asr=1,ks=0.3", {"name": "fixed", "asr": 1, "ks": 0.3}),
        ("famo:lr=1e-3", {"name": "famo", "lr": 1e-3}),
        (
            "stch:mu=0.1,weights.asr=1,weights.ks=2",
            {"name": "stch", "mu": 0.1, "weights": {"asr": 1, "ks": 2}},
        ),
    ],
)
def test_a_text_is_a_name_and_options(text: str, section: dict[str, Any]):
    assert parse_balancer(text, "--balancer") == section


@pytest.mark.parametrize(
    ("name", "nearest"), [("uncertanty", "uncertainty"), ("up_gard", "upgrad"), ("fxied", "fixed")]
)
def test_an_unknown_name_is_an_error_with_the_nearest(name: str, nearest: str):
    with user_error("unknown-name", where=f"--balancer {name}", fix=nearest):
        parse_balancer(name, "--balancer")


def test_every_balancer_of_gradients_may_keep_them_in_another_way():
    for name in ("pcgrad", "gradvac", "famo"):
        assert "gradients" in balancer_settings(name)
        balancer = make_balancer({"name": name, "gradients": "cpu"}, ["a", "b"])
        assert isinstance(balancer, GradientBalancer) and balancer.kept == "cpu"
    with user_error("invalid-value", where=r"balancer\.gradients", fix="bfloat16"):
        make_balancer({"name": "pcgrad", "gradients": "float16"}, ["a", "b"])
    with user_error("unknown-key", where=r"balancer\.gradients"):
        make_balancer({"name": "sum", "gradients": "cpu"}, ["a", "b"])


def test_an_option_that_a_balancer_does_not_have_is_an_error():
    with user_error("unknown-key", where="balancer.per_paramter", fix="per_parameter"):
        make_balancer({"name": "pcgrad", "per_paramter": True}, ["a"])
    with user_error("wrong-type", where="balancer.per_parameter"):
        make_balancer({"name": "pcgrad", "per_parameter": 1}, ["a"])
    with user_error("unknown-key", where="balancer.seed"):
        make_balancer({"name": "pcgrad", "seed": 1}, ["a"])
    with user_error("unknown-key", where=r"balancer\.lr", fix="none"):
        config_of(balancer="uncertainty:lr=1")
    with user_error("invalid-value", where="--balancer"):
        parse_balancer("fixed:asr=1,ks", "--balancer")
    for text in ("fixed:ks", "stch:mu", "sum:"):
        with user_error("invalid-value", where="--balancer", fix="fixed:asr=1"):
            parse_balancer(text, "--balancer")
    with user_error("conflicting-options", where="--balancer"):
        parse_balancer("fixed:asr=1,asr=2", "--balancer")


def config_of(*files: Path, **flags: Any) -> dict[str, Any]:
    text = flags.pop("overrides", None)
    given = {"downstream": ["ks"], "data": "/corpora", **flags}
    return build_config(files=files, flags=given, overrides=text)["balancer"]


def test_the_config_takes_a_section_or_a_text(tmp_path: Path):
    file = tmp_path / "run.yaml"
    assert config_of() == {"name": "sum"}
    file.write_text("balancer: {name: FAMO, lr: 0.1}\n")
    assert config_of(file) == {"name": "famo", "lr": 0.1}
    # Another method inherits nothing, the same one its other options.
    assert config_of(file, balancer="gradvac") == {"name": "gradvac"}
    changed = config_of(file, overrides="config.balancer.weight_decay=0")
    assert changed == {"name": "famo", "lr": 0.1, "weight_decay": 0}
    assert config_of(overrides="args.balancer=fixed:ks=2") == {"name": "fixed", "ks": 2}
    with user_error("unknown-key", where="balancer.lrr", fix="lr"):
        config_of(file, overrides="config.balancer.lrr=0")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("fixed:asv=0.5,s3prl-mtl:ks=2", {"sv": 0.5, "ks": 2}),
        ("stch:mu=1,weights.asv=1,weights.ks=3", {"mu": 1, "weights": {"sv": 1, "ks": 3}}),
    ],
)
def test_options_by_task_take_other_names_of_tasks(text: str, options: dict[str, Any]):
    name = text.partition(":")[0]
    assert config_of(downstream=["ks", "asv"], balancer=text) == {"name": name, **options}


def test_values_for_two_names_of_a_task_are_refused():
    two = ["ks", "sv"]
    overrides = "balancer.name=fixed,,balancer.asv=2"
    assert config_of(downstream=two, overrides=overrides) == {"name": "fixed", "sv": 2}
    with user_error("conflicting-options", where="balancer"):
        config_of(downstream=two, balancer="fixed:sv=1,asv=2")


def test_another_package_adds_a_balancer(install):
    install(THIRD, None, "mine", "s3prl_mtl.balancers")
    balancer = make_balancer(config_of(balancer="mine:factor=3.0"), ["ks"], seed=7)
    assert isinstance(balancer, Sum) and balancer.factor == 3.0 and balancer.seed == 7
    with user_error("unknown-key", where="balancer.fctor", fix="factor"):
        config_of(balancer="mine:fctor=3.0")


def test_a_balancer_of_another_class_is_an_error(install):
    install("def DownstreamExpert(tasks): return 3\n", None, "three", "s3prl_mtl.balancers")
    with user_error("plugin-broken", where="three"):
        make_balancer({"name": "three"}, ["ks"])


FOUR = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("balancer", "rule", "fix"),
    [
        ("pcgrad", "uniform", "all"),
        ("stch:mu=1", "every:4", "all"),
        ("upgrad", "weights:a=2", "all"),
        ("famo", "every:a=2", "all"),
        ("gradvac", "every:2", "all"),
        ("pcd", "every:b=3", "all"),
        ("dwa", "weights:a=0", "weight above 0"),
        ("krum:n_byzantine=1", "every:a=2", "4 tasks"),
        ("trimmedmean:trim_number=1", "every:2", "3 tasks"),
    ],
)
def test_a_balancer_that_cannot_work_with_the_sampling_is_refused(
    balancer: str, rule: str, fix: str
):
    made = make_balancer(parse_balancer(balancer, "--balancer"), FOUR)
    check_steps(made, [FOUR], "all")
    with user_error("conflicting-options", where=r"runner\.sampling", fix=fix):
        check_steps(made, tasks_of_steps(rule, FOUR), rule)


@pytest.mark.parametrize(
    ("balancer", "rule"),
    [
        ("fixed:a=2", "uniform"),
        ("uw", "uniform"),
        ("dwa", "weights:a=0.5"),
        ("pcgrad", "every:2"),
        ("stch:mu=1,weights.a=1,weights.b=1,weights.c=2,weights.d=1", "every:a=4"),
        ("krum:n_byzantine=0", "every:a=2"),
    ],
)
def test_other_balancers_take_any_sampling(balancer: str, rule: str):
    made = make_balancer(parse_balancer(balancer, "--balancer"), FOUR)
    check_steps(made, tasks_of_steps(rule, FOUR), rule)


@pytest.mark.parametrize(
    ("name", "example"),
    [("stch", "stch:mu=1"), ("constant", "constant:weights.a=1,weights.b=1,"), ("krum", "krum:n_")],
)
def test_a_missing_option_is_shown_by_an_example(name: str, example: str):
    with user_error("missing-option", where=name, fix=example):
        make_balancer({"name": name}, FOUR)


def test_a_method_says_how_many_tasks_it_needs():
    with user_error("invalid-value", where="krum", fix="5 tasks"):
        make_balancer({"name": "krum", "n_byzantine": 2}, FOUR)
    with user_error("invalid-value", where="trimmedmean", fix="7 tasks"):
        make_balancer({"name": "trimmedmean", "trim_number": 3}, FOUR)
