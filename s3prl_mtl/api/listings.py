"""Lists of installed tasks, upstreams and balancers."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from s3prl_mtl.api.calls import PathLike, callable_from_python
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import (
    OUR_PACKAGE,
    Plugin,
    discover_balancers,
    discover_tasks,
    discover_upstreams,
    load_task,
    task_defaults,
)
from s3prl_mtl.s3prl_compat.folders import installed_experts

_MARKUP = re.compile(r"(?::[a-z:]+:)?`+~?([^`]*)`+")
"""References and code of a docstring: :class:`~a.B`, ``code`` and `code`."""


@dataclass(frozen=True)
class ListedTask:
    """A task that is installed.

    Attributes:
        name: for `-d`.
        package: with its version.
        metrics: titles of those that the table of results shows.
        corpus: its title; empty if the task does not name it.
        data: `present` or `missing`; `?` if it was not looked for, or could not be checked;
            `unknown` if the task cannot say.
        problems: of the corpus.
        state: `ok`, `alias of TASK` or `broken`.
        error: why it is broken.
    """

    name: str
    package: str
    metrics: tuple[str, ...] = ()
    corpus: str = ""
    data: str = "unknown"
    problems: tuple[str, ...] = ()
    state: str = "ok"
    error: str | None = None


@dataclass(frozen=True)
class ListedUpstream:
    """An encoder that is installed.

    Attributes:
        name: for `-u`.
        package: with its version.
        description: the first line of its documentation.
        error: why it cannot be loaded.
    """

    name: str
    package: str
    description: str = ""
    error: str | None = None


@dataclass(frozen=True)
class ListedBalancer:
    """A method that combines several tasks.

    Attributes:
        name: for `--balancer`.
        package: with its version.
        combines: `losses` or `gradients`; empty if it does not say.
        options: names; None if it takes any.
        required: those of `options` that must be given.
        description: one line.
        needs: what has to be installed first; None if nothing.
        error: why it cannot be loaded.
    """

    name: str
    package: str
    combines: str = ""
    options: tuple[str, ...] | None = ()
    required: tuple[str, ...] = ()
    description: str = ""
    needs: str | None = None
    error: str | None = None


@callable_from_python
def tasks(*, data: PathLike | None = None, all: bool = False) -> list[ListedTask]:
    """The installed tasks, and whether their corpora are present: the command `tasks`.

    A task that is broken is listed as such, with the reason.

    Args:
        data: folder of the corpora; by default `$SUPERB_DATA`.
        all: s3prl's own experts too, as `s3prl:NAME`.

    Returns:
        the tasks of this package, of others, and of s3prl.
    """
    folder = data or os.environ.get("SUPERB_DATA")
    found = discover_tasks()
    listed = [_task(name, plugin, found, folder) for name, plugin in found.items()]
    if all:
        package = s3prl_release()
        names = (f"s3prl:{expert}" for expert in sorted(installed_experts()))
        listed += [ListedTask(name, package) for name in names if name not in found]
    return listed


def _task(
    name: str, plugin: Plugin, found: Mapping[str, Plugin], data: PathLike | None
) -> ListedTask:
    from s3prl_mtl.tasks.contract import check_installed

    try:
        expert = load_task(name)
        task_defaults(name)
        check_installed(name, expert)
        present, problems = _data_state(name, expert, data)
        corpus = str(getattr(getattr(expert, "corpus_type", None), "title", ""))
        return ListedTask(
            name,
            str(plugin),
            _metrics(expert),
            corpus,
            present,
            tuple(problems),
            _state(name, expert, found),
        )
    except (Exception, SystemExit) as cause:
        # A broken task of another package must not hide the others.
        error = _why_broken(cause, "Task", name, plugin)
        return ListedTask(name, str(plugin), data="", state="broken", error=error)


def _metrics(expert: type) -> tuple[str, ...]:
    from s3prl_mtl.tasks.metric import metrics_of

    metrics = metrics_of(expert)
    shown = [m.title for m in metrics if (m.headline and not m.optional) or m is metrics[0]]
    return tuple(map(str, shown))


def _state(name: str, expert: Any, found: Mapping[str, Plugin]) -> str:
    stated = getattr(expert, "name", None)
    if stated != name and stated in found:
        return f"alias of {stated}"
    if ":" in name and name not in (stated, f"s3prl:{stated}"):
        return "ok; two packages have this name"
    return "ok"


def _data_state(name: str, expert: Any, data: PathLike | None) -> tuple[str, list[str]]:
    """The state of the corpus of a task, and its problems."""
    from s3prl_mtl.config import build_config, resolve

    check = getattr(expert, "problems", None)
    if check is None:
        return "unknown", []
    flags: dict[str, Any] = {"downstream": [name]}
    if data:
        flags["data"] = os.fspath(data)
    try:
        config = resolve(build_config(flags=flags))
        (block,) = config.tasks.values()
        problems = check(block.downstream_expert)
    except UserError as mistake:
        return ("?", []) if not data else ("?", [str(mistake)])
    except Exception as error:
        return "?", [f"its check of the corpus failed: {type(error).__name__}: {error}."]
    return ("missing", problems) if problems else ("present", [])


@callable_from_python
def upstreams(*, all: bool = False) -> list[ListedUpstream]:
    """The installed encoders: the command `upstreams`.

    An encoder that cannot be loaded is listed with the reason.

    Args:
        all: every encoder of s3prl's zoo too.

    Returns:
        the encoders of this package, of others, and of s3prl.
    """
    listed = []
    for name, plugin in discover_upstreams().items():
        try:
            title = _upstream_title(name, plugin)
            listed.append(ListedUpstream(name, str(plugin), title))
        except (Exception, SystemExit) as cause:
            error = _why_broken(cause, "Upstream", name, plugin)
            listed.append(ListedUpstream(name, str(plugin), error=error))
    if all:
        from s3prl_mtl.upstreams.zoo.s3prl_hub import zoo_names

        package = s3prl_release()
        listed += [ListedUpstream(name, package) for name in sorted(zoo_names())]
    return listed


def _upstream_title(name: str, plugin: Plugin) -> str:
    """The first line of an upstream's docstring, without markup.

    Raises:
        UserError: it cannot be imported, or is not callable.
    """
    factory = plugin.load()
    if not callable(factory):
        raise UserError(
            f"Upstream {name!r} of package {plugin} is a {type(factory).__name__}, not a function.",
            where=f"entry point {plugin.entry_point.value}",
            code="plugin-broken",
        )
    return _MARKUP.sub(r"\1", _first_line(factory))


@callable_from_python
def balancers() -> list[ListedBalancer]:
    """The methods that combine several tasks: the command `balancers`.

    Returns:
        those of this package, of others, and of torchjd.
    """
    from s3prl_mtl.balancing.factory import BUILT_IN, KEPT_OPTION, balancer_settings
    from s3prl_mtl.balancing.torchjd_methods import torchjd_methods

    listed = []
    ours = f"{OUR_PACKAGE} {version(OUR_PACKAGE)}"
    for name, kind in BUILT_IN.items():
        options = balancer_settings(name)
        named = None if options is None else tuple(options)
        listed.append(
            ListedBalancer(name, ours, _combines(kind), named, description=_first_line(kind))
        )
    for name, plugin in discover_balancers().items():
        try:
            found, options = plugin.load(), balancer_settings(name)
            named = None if options is None else tuple(options)
            listed.append(
                ListedBalancer(
                    name, str(plugin), _combines(found), named, description=_first_line(found)
                )
            )
        except (Exception, SystemExit) as cause:
            error = _why_broken(cause, "Balancer", name, plugin)
            listed.append(ListedBalancer(name, str(plugin), error=error))
    torchjd = f"torchjd {version('torchjd')}"
    for name, method in torchjd_methods().items():
        if name in BUILT_IN:
            continue
        listed.append(
            ListedBalancer(
                name,
                torchjd,
                "losses" if method.level == "loss" else "gradients",
                (*method.options, *([KEPT_OPTION] if method.keeps_gradients else [])),
                tuple(method.required),
                method.title,
                method.missing_package(),
            )
        )
    return listed


def _combines(entry: object) -> str:
    """The quantity that a balancer combines; empty for a factory, where it is unknown."""
    from s3prl_mtl.balancing.base import GradientBalancer

    if not inspect.isclass(entry):
        return ""
    return "gradients" if issubclass(entry, GradientBalancer) else "losses"


def _first_line(entry: object) -> str:
    return (inspect.getdoc(entry) or "").partition("\n")[0]


def _why_broken(cause: BaseException, kind: str, name: str, plugin: Plugin) -> str:
    """The reason why an entry cannot be loaded, with its package.

    Args:
        cause: raised while it was loaded.
        kind: `Task`, `Upstream` or `Balancer`.
        name: of it.
        plugin: its entry point.
    """
    from s3prl_mtl.authoring.contract import failure_summary

    reason = str(cause) if isinstance(cause, UserError) else f"{failure_summary(cause)}."
    owner = f"of package {plugin.package}"
    return reason if owner in reason else f"{kind} {name!r} {owner} {plugin.version}: {reason}"


def s3prl_release() -> str:
    """s3prl with its version, if it is installed rather than only on the path."""
    try:
        return f"s3prl {version('s3prl')}"
    except PackageNotFoundError:
        return "s3prl"
