"""The methods of torchjd by name, and their options."""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torchjd import Stateful

from s3prl_mtl.errors import UserError, nearest

SUPPLIED = ("shape", "n_tasks")
"""Arguments of constructors that are the number of tasks."""

EPOCH_STEPS = "epoch_steps"
"""Option of methods with epochs (DWA): steps of one, since tasks have epochs of their own."""

DEFAULT_EPOCH_STEPS = 1000

INDEPENDENT_OF_LOSSES = {"constant", "dwa", "imtll", "mean", "random", "sum", "uw"}
"""Scalarizers with weights that the losses of the step do not change."""

SEPARATE_STATE = {"dwa", "imtll", "uw"}
"""Methods with a state for each task on its own; that of others compares the tasks of a step."""

SHARES = {"pref_vector", "weights"}
"""Options by task that are weights: not negative, and not all 0."""

MANY_TASKS = 100
"""The largest number of tasks that is tried for methods which need a minimum of them."""


@dataclass(frozen=True)
class Method:
    """A class of torchjd that a config can describe.

    Args:
        kind: the class.
        level: `loss` for a scalarizer, `gradient` for an aggregator.
        options: names of its options with the types that they accept.
        required: options without a default.
    """

    kind: type
    level: str
    options: Mapping[str, tuple[Any, ...]]
    required: Sequence[str]

    @property
    def name(self) -> str:
        return self.kind.__name__.lower()

    @property
    def keeps_gradients(self) -> bool:
        """Whether the gradients of the tasks are kept apart, also of those that weight losses."""
        return self.level == "gradient" or self.name not in INDEPENDENT_OF_LOSSES

    @property
    def compares_tasks(self) -> bool:
        """Whether it has a state that only steps with every task change."""
        return issubclass(self.kind, Stateful) and self.name not in SEPARATE_STATE

    @property
    def title(self) -> str:
        """The title of the paper in the docstring, or its first line."""
        text = " ".join((inspect.getdoc(self.kind) or "").split())
        paper, link, _ = text.partition(" <http")
        return paper.rpartition("`")[2] if link else ""

    def missing_package(self) -> str:
        """What to install for this method; empty if nothing is missing."""
        # Every option, so that no required one is missing.
        values = {
            name: {"a": 1.0, "b": 1.0} if Tensor in self.options[name] else 1
            for name in self.required
        }
        try:
            self.build(["a", "b"], values, torch.device("cpu"))
        except UserError as error:
            return (error.fix or error.what) if error.code == "missing-package" else ""
        return ""

    def build(self, tasks: Sequence[str], options: Mapping[str, Any], device: torch.device) -> Any:
        """An object of the class for some tasks.

        Args:
            tasks: of the run or of a step; options by task are restricted to them.
            options: from the config.
            device: of tensors.

        Raises:
            UserError: an option is unknown, missing or of the wrong type, or torchjd refuses it, or
                a package is missing.
        """
        self._check(tasks, options)
        try:
            self._try_out(tasks, options)
            return self._construct(tasks, options, device)
        except ImportError as cause:
            missing, _, _ = str(cause).partition(" Install them with: ")
            # The extra lacks it there: it has no wheel.
            ecos = " ecos" if "ecos" in missing and sys.version_info >= (3, 13) else ""
            raise UserError(
                f"{self.name}: {missing}",
                where=f"balancer {self.name}",
                fix=f'pip install "s3prl-mtl[balancers]"{ecos}',
                code="missing-package",
            ) from cause
        except (TypeError, ValueError) as cause:
            needed = self._fewest_tasks(options, len(tasks))
            raise UserError(
                f"{self.name} does not take these settings for {len(tasks)} tasks: "
                f"{str(cause).rstrip('.')}.",
                where=f"balancer {self.name}",
                fix=f"With these options it needs {needed} tasks or more." if needed else None,
                code="invalid-value",
            ) from cause

    def _fewest_tasks(self, options: Mapping[str, Any], more_than: int) -> int | None:
        """The number of tasks that these options need; None if no number is enough."""
        if any(isinstance(value, Mapping) for value in options.values()):
            return None
        for count in range(more_than + 1, MANY_TASKS):
            try:
                self._try_out([""] * count, options)
            except (TypeError, ValueError):
                continue
            return count
        return None

    def _try_out(self, tasks: Sequence[str], options: Mapping[str, Any]) -> None:
        """Call an object once: limits of the number of tasks are checked then only."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Of solvers, about their speed.
            warnings.simplefilter("ignore")
            example = self._construct(tasks, options, torch.device("cpu"))
            size = len(tasks)
            example(torch.eye(size) if self.level == "gradient" else torch.ones(size))

    def _construct(
        self, tasks: Sequence[str], options: Mapping[str, Any], device: torch.device
    ) -> Any:
        parameters = _parameters(self.kind)
        arguments: dict[str, Any] = {name: len(tasks) for name in SUPPLIED if name in parameters}
        for name, value in options.items():
            if isinstance(value, Mapping):
                arguments[name] = self._by_task(name, value, tasks).to(device)
            elif name != EPOCH_STEPS:
                arguments[name] = value
        return self.kind(**arguments).to(device)

    def check_tasks(self, tasks: Sequence[str], options: Mapping[str, Any]) -> None:
        """Refuse options for other tasks than those of the run.

        Raises:
            UserError: names the option and the task.
        """
        for name, value in options.items():
            for task in value if isinstance(value, Mapping) else ():
                if task not in tasks:
                    raise UserError(
                        f"The run has no task {task!r} for {name} of {self.name}.",
                        where=f"balancer.{name}.{task}",
                        fix=nearest(str(task), list(tasks)),
                        code="unknown-name",
                    )

    def _check(self, tasks: Sequence[str], options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            where = f"balancer.{name}"
            if name not in self.options:
                known = list(self.options)
                raise UserError(
                    f"{self.name} has no option {name!r}.",
                    where=where,
                    fix=nearest(name, known) if known else "It takes none.",
                    code="unknown-key",
                )
            if not _accepts(self.options[name], value):
                kinds = _in_words(self.options[name])
                raise UserError(
                    f"{name} of {self.name} must be {kinds}, not {value!r}.",
                    where=where,
                    fix=f"For example: {self._by_task_example(name, tasks)}."
                    if Tensor in self.options[name]
                    else None,
                    code="wrong-type",
                )
            numbers = list(value.values()) if isinstance(value, Mapping) else [value]
            if any(isinstance(n, float) and not math.isfinite(n) for n in numbers):
                raise UserError(
                    f"{name} of {self.name} must be finite, not {value!r}.",
                    where=where,
                    code="invalid-value",
                )
            if name in SHARES and (min(numbers, default=0) < 0 or not any(numbers)):
                raise UserError(
                    f"{name} of {self.name} must be at least 0, and above 0 for a task: {value!r}.",
                    where=where,
                    code="invalid-value",
                )
        if options.get(EPOCH_STEPS, 1) < 1:
            raise UserError(
                f"{EPOCH_STEPS} of {self.name} must be at least 1, not {options[EPOCH_STEPS]}.",
                where=f"balancer.{EPOCH_STEPS}",
                code="invalid-value",
            )
        for name in self.required:
            if name not in options:
                raise UserError(
                    f"{self.name} needs the option {name}, {_in_words(self.options[name])}.",
                    where=f"balancer {self.name}",
                    fix=f"For example: {self._example(tasks)}.",
                    code="missing-option",
                )

    def _example(self, tasks: Sequence[str]) -> str:
        """The method with its required options, as `--balancer` takes it."""
        given = [
            text
            for name in self.required
            for text in (
                [f"{name}.{task}=1" for task in tasks]
                if self.options[name] == (Tensor,)
                else [f"{name}=1"]
            )
        ]
        return f"{self.name}:" + ",".join(given)

    def _by_task_example(self, name: str, tasks: Sequence[str]) -> str:
        """The method with an option by task, as `--balancer` takes it."""
        return f"{self.name}:" + ",".join(f"{name}.{task}=1" for task in tasks)

    def _by_task(self, name: str, values: Mapping[str, Any], tasks: Sequence[str]) -> Tensor:
        missing = [task for task in tasks if task not in values]
        if missing:
            raise UserError(
                f"{name} of {self.name} has no value for {', '.join(missing)}.",
                where=f"balancer.{name}",
                fix=f"For example: {self._by_task_example(name, tasks)}.",
                code="missing-option",
            )
        return torch.tensor([float(values[task]) for task in tasks])


@cache
def torchjd_methods() -> dict[str, Method]:
    """The methods of the installed torchjd by name in lower case; losses before gradients."""
    from torchjd import aggregation, scalarization

    levels = (
        (aggregation, aggregation.Aggregator, "gradient"),
        # Of the same name, that of losses is cheaper, and the update of the encoder is the same.
        (scalarization, scalarization.Scalarizer, "loss"),
    )
    return {
        method.name: method
        for module, base, level in levels
        for method in methods_of(module, base, level)
    }


def methods_of(module: ModuleType, base: type, level: str) -> list[Method]:
    """The classes of a module that a config can describe.

    Args:
        module: of torchjd.
        base: class of its methods.
        level: `loss` or `gradient`.
    """
    found = []
    for entry in map(vars(module).get, module.__all__):
        if not inspect.isclass(entry) or not issubclass(entry, base) or inspect.isabstract(entry):
            continue
        hints = get_type_hints(entry.__init__)
        parameters = _parameters(entry)
        options = {name: _types(hints.get(name)) for name in parameters if name not in SUPPLIED}
        required = [name for name in options if parameters[name].default is inspect.Parameter.empty]
        if all(options[name] for name in required):
            settable = {name: types for name, types in options.items() if types}
            if hasattr(entry, "step"):
                settable[EPOCH_STEPS] = (int,)
            found.append(Method(entry, level, settable, required))
    return found


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _types(hint: Any) -> tuple[Any, ...]:
    """The types of an option that a config can express; empty if there are none."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _types(part))
    if get_origin(hint) is Literal:
        return (hint,)
    return (hint,) if hint in (int, float, bool, str, Tensor) else ()


def _accepts(types: Sequence[Any], value: Any) -> bool:
    for kind in types:
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return True
        elif kind is Tensor:
            numbers = value.values() if isinstance(value, Mapping) else [None]
            if all(_accepts((float,), number) for number in numbers):
                return True
        elif isinstance(value, int | float if kind is float else kind) and (
            kind is bool or not isinstance(value, bool)
        ):
            return True
    return False


def _in_words(types: Sequence[Any]) -> str:
    words = []
    for kind in types:
        if get_origin(kind) is Literal:
            words.append(" or ".join(map(repr, get_args(kind))))
        else:
            words.append("a number for each task" if kind is Tensor else f"of type {kind.__name__}")
    return " or ".join(words)
