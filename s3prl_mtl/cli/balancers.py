"""`balancers`: list the methods that combine several tasks, and what is missing."""

from __future__ import annotations

import argparse
import inspect
from importlib.metadata import version

from rich.table import Column, Table

from s3prl_mtl.cli.tasks import why_broken
from s3prl_mtl.tracking.console import OUTPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(_arguments: argparse.Namespace) -> None:
    """Print every balancer, with its options."""
    from s3prl_mtl.balancing.factory import BUILT_IN, KEPT_OPTION, balancer_settings
    from s3prl_mtl.balancing.torchjd_methods import torchjd_methods
    from s3prl_mtl.registry.plugins import OUR_PACKAGE, discover_balancers

    names = [Column(title, no_wrap=True) for title in ("balancer", "combines", "package")]
    table = Table(*names, "options", "description")
    broken = []
    package = f"{OUR_PACKAGE} {version(OUR_PACKAGE)}"
    for name, kind in BUILT_IN.items():
        options = balancer_settings(name)
        listed = "TASK=WEIGHT" if options is None else ", ".join(options)
        table.add_row(name, _combines(kind), package, listed, _first_line(kind))
    for name, plugin in discover_balancers().items():
        try:
            found, options = plugin.load(), balancer_settings(name)
            listed = "any" if options is None else ", ".join(options)
            table.add_row(name, _combines(found), str(plugin), listed, _first_line(found))
        except (Exception, SystemExit) as cause:
            table.add_row(name, "", str(plugin), "", "broken")
            broken.append(why_broken(cause, "Balancer", name, plugin))
    torchjd = f"torchjd {version('torchjd')}"
    for name, method in torchjd_methods().items():
        if name not in BUILT_IN:
            options = [f"{o} (required)" if o in method.required else o for o in method.options]
            options += [KEPT_OPTION] if method.keeps_gradients else []
            needs = method.missing_package()
            title = f"{method.title} ({needs})" if needs else method.title
            level = "losses" if method.level == "loss" else "gradients"
            table.add_row(name, level, torchjd, ", ".join(options), title)
    OUTPUT.print(table)
    for paragraph in broken:
        OUTPUT.print(paragraph, markup=False, soft_wrap=True)


def _combines(entry: object) -> str:
    """What a balancer combines; empty for a factory, which does not say it."""
    from s3prl_mtl.balancing.base import GradientBalancer

    if not inspect.isclass(entry):
        return ""
    return "gradients" if issubclass(entry, GradientBalancer) else "losses"


def _first_line(entry: object) -> str:
    return (inspect.getdoc(entry) or "").partition("\n")[0]
