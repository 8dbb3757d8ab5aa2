"""Balancers by name: those of this package, of other packages, and of torchjd."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s3prl_mtl.balancing.base import KEPT, Balancer, GradientBalancer
from s3prl_mtl.balancing.pcgrad import PCGrad
from s3prl_mtl.balancing.sum import Sum
from s3prl_mtl.balancing.weighted import Fixed, Uncertainty
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.registry.plugins import BALANCERS, discover_balancers, find_plugin

BUILT_IN: dict[str, type[Balancer]] = {
    "sum": Sum,
    "fixed": Fixed,
    "uncertainty": Uncertainty,
    "pcgrad": PCGrad,
}

SUPPLIED = ("tasks", "seed", "device")
"""Arguments of constructors that the run supplies."""

KEPT_OPTION = "gradients"
"""Option of every balancer that combines gradients: `GradientBalancer.kept`."""


def parse_balancer(value: str | Mapping[str, Any], where: str) -> dict[str, Any]:
    """The section `balancer` of a config, from a section or from `NAME[:option=value,...]`.

    Args:
        value: text or section.
        where: source, for errors.

    Raises:
        UserError: the text has another form, or there is no such balancer.
    """
    section = dict(value) if isinstance(value, Mapping) else _parse(str(value), where)
    if "name" in section:
        section["name"] = find_balancer(str(section["name"]))[0]
    return section


def _parse(text: str, where: str) -> dict[str, Any]:
    name, colon, rest = text.partition(":")
    if "=" not in rest and not (colon and _is_known(name)):
        return {"name": text}  # a name, or `package:name`
    pairs = [pair.strip() for pair in rest.split(",")]
    keys = [pair.partition("=")[0].strip() for pair in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise UserError(
            f"{twice!r} is given more than once.",
            where=where,
            fix="Give each option once.",
            code="conflicting-options",
        )
    malformed = [pair for pair in pairs if "=" not in pair]
    try:
        options = OmegaConf.to_container(OmegaConf.from_dotlist(pairs)) if not malformed else {}
    except (yaml.YAMLError, OmegaConfBaseException):
        malformed = pairs
    if malformed:
        raise UserError(
            f"{malformed[0]!r} is not of the form option=value.",
            where=where,
            fix="For example: fixed:asr=1,ks=0.3, or pcgrad:per_parameter=true.",
            code="invalid-value",
        )
    assert isinstance(options, dict)
    return {"name": name, **{str(key): entry for key, entry in options.items()}}


def _is_known(name: str) -> bool:
    """Whether this package or torchjd has a balancer of the name."""
    from s3prl_mtl.balancing.torchjd_methods import torchjd_methods  # slow to import

    plain = name.lower().replace("_", "")
    return plain in BUILT_IN or plain in torchjd_methods()


def find_balancer(name: str) -> tuple[str, Any]:
    """The name of a balancer as configs have it, and its class, factory or `Method` of torchjd.

    Case and underscores of built-in names and those of torchjd are ignored.

    Raises:
        UserError: no balancer has the name.
    """
    plain = name.lower().replace("_", "")
    if plain in BUILT_IN:
        return plain, BUILT_IN[plain]
    plugins = discover_balancers()
    if name in plugins or ":" in name:
        return name, find_plugin(BALANCERS, name).load()
    from s3prl_mtl.balancing.torchjd_methods import torchjd_methods  # slow to import

    methods = torchjd_methods()
    if plain not in methods:
        raise UserError(
            f"There is no balancer named {name!r}.",
            where=f"--balancer {name}",
            fix=f"{nearest(plain, [*BUILT_IN, *plugins, *methods])} "
            "(`s3prl-mtl balancers` lists all of them.)",
            code="unknown-name",
        )
    return plain, methods[plain]


def balancer_settings(name: str) -> list[str] | None:
    """The names of the options of a balancer; None if it takes any, such as the names of tasks.

    Raises:
        UserError: there is no such balancer.
    """
    _, found = find_balancer(name)
    options = _options(found) if callable(found) else list(found.options)
    keeps = (
        issubclass(found, GradientBalancer)
        if inspect.isclass(found)
        else getattr(found, "keeps_gradients", False)
    )
    return [*options, KEPT_OPTION] if keeps and options is not None else options


def make_balancer(
    settings: Mapping[str, Any],
    tasks: Sequence[str],
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Balancer:
    """Build the balancer of a config's `balancer` section.

    Args:
        settings: `name` and options.
        tasks: of the run.
        seed: of the run, for methods with random draws.
        device: of the losses.

    Raises:
        UserError: an unknown name or option, a value that the method refuses, or a missing package.
    """
    kept = settings.get(KEPT_OPTION)
    others = {key: value for key, value in settings.items() if key != KEPT_OPTION}
    if kept is None:
        return _make(others, tasks, seed, device)
    if kept not in KEPT:
        raise UserError(
            f"Gradients cannot be kept as {kept!r}.",
            where=f"balancer.{KEPT_OPTION}",
            fix=f"Choose {', '.join(KEPT)}.",
            code="invalid-value",
        )
    balancer = _make(others, tasks, seed, "cpu" if kept == "cpu" else device)
    if not isinstance(balancer, GradientBalancer):
        raise UserError(
            f"{settings['name']} combines losses: it keeps no gradients.",
            where=f"balancer.{KEPT_OPTION}",
            fix="Leave out the option.",
            code="unknown-key",
        )
    balancer.kept = str(kept)
    return balancer


def check_steps(balancer: Balancer, steps: Sequence[Sequence[str]], rule: str) -> None:
    """Refuse a balancer that cannot work with the tasks that a sampling rule gives its steps.

    Args:
        balancer: of the run.
        steps: the different sets of tasks of the steps.
        rule: for errors.

    Raises:
        UserError: the steps have one task each, and nothing to combine; or the method needs more
            tasks than some steps have.
    """
    if min(map(len, steps)) == len(balancer.tasks):
        return
    if isinstance(balancer, GradientBalancer) and max(map(len, steps)) == 1:
        raise UserError(
            f"With the sampling {rule!r} each step has one task: the balancer has nothing to "
            "combine.",
            where="balancer and runner.sampling",
            fix="Use --sampling all, or the balancer sum, fixed or uncertainty.",
            code="conflicting-options",
        )
    from s3prl_mtl.balancing import torchjd_balancers  # slow to import

    torchjd_balancers.check_steps(balancer, steps, rule)


def _make(
    settings: Mapping[str, Any],
    tasks: Sequence[str],
    seed: int,
    device: torch.device | str,
) -> Balancer:
    name, found = find_balancer(str(settings["name"]))
    options = {key: value for key, value in settings.items() if key != "name"}
    if not callable(found):
        from s3prl_mtl.balancing.torchjd_balancers import torchjd_balancer
        from s3prl_mtl.balancing.torchjd_methods import Method

        assert isinstance(found, Method)
        return torchjd_balancer(found, tasks, options, seed, device).to(device)
    _refuse_unknown_options(name, options, found)
    supplied = {"seed": seed, "device": torch.device(device)}
    parameters = inspect.signature(found).parameters
    balancer = found(
        tasks, **{key: supplied[key] for key in supplied if key in parameters}, **options
    )
    if not isinstance(balancer, Balancer):
        raise UserError(
            f"The balancer {name!r} is a {type(balancer).__name__}.",
            where=f"balancer {name}",
            fix="Inherit from s3prl_mtl.balancing.Balancer.",
            code="plugin-broken",
        )
    return balancer.to(device)


def _options(factory: Callable[..., Any]) -> list[str] | None:
    parameters = inspect.signature(factory).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return [key for key in parameters if key not in SUPPLIED]


def _refuse_unknown_options(
    name: str, options: Mapping[str, Any], factory: Callable[..., Any]
) -> None:
    """Check options against the signature of a constructor, and types against its defaults."""
    parameters = inspect.signature(factory).parameters
    known = _options(factory)
    for key, value in options.items():
        if known is not None and key not in known:
            raise UserError(
                f"{name} has no option {key!r}.",
                where=f"balancer.{key}",
                fix=nearest(key, known) if known else "It takes none.",
                code="unknown-key",
            )
        default = parameters[key].default if key in parameters else None
        if isinstance(default, bool) and not isinstance(value, bool):
            raise UserError(
                f"{key} of {name} must be true or false, not {value!r}.",
                where=f"balancer.{key}",
                code="wrong-type",
            )
