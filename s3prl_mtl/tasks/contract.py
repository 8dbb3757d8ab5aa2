"""Whether a run could use the class of an expert at all: what it lacks, before it is built."""

from __future__ import annotations

from torch import nn

from s3prl_mtl.errors import UserError
from s3prl_mtl.tasks.base import TaskExpert
from s3prl_mtl.tasks.metric import check_declarations, settings_file


def lacking(expert_class: type) -> str | None:
    """What the class of any expert lacks of the contract, as a sentence; None if nothing."""
    if not issubclass(expert_class, nn.Module):
        return "It is no torch.nn.Module."
    methods = [
        method
        for method in ("get_dataloader", "log_records")
        if not callable(getattr(expert_class, method, None))
    ]
    # A module that defines none inherits one that only raises.
    if expert_class.forward is nn.Module.forward:
        methods.append("forward")
    methods += sorted(getattr(expert_class, "__abstractmethods__", ()))
    if methods:
        return f"It does not define {', '.join(f'`{method}`' for method in methods)}."
    return None


def check_class(name: str, expert_class: type) -> None:
    """Refuse a class that no run could use.

    Args:
        name: of the task.
        expert_class: what its entry point names.

    Raises:
        UserError: says what it lacks.
    """
    missing = lacking(expert_class)
    if missing is not None:
        raise UserError(
            f"The class of the task {name!r} cannot be used. {missing}",
            where=f"{expert_class.__module__}.{expert_class.__qualname__}",
            fix="The contract is in docs/plugins.md; `python -m s3prl_mtl new-task` writes one "
            "that keeps it.",
            code="expert-invalid",
        )
    if issubclass(expert_class, TaskExpert):
        check_declarations(expert_class)
        reads = ("target", "read", "get_dataloader")
        if all(getattr(expert_class, own) is getattr(TaskExpert, own) for own in reads):
            raise UserError(
                f"The class of the task {name!r} defines neither `target` nor `read`.",
                where=f"{expert_class.__module__}.{expert_class.__qualname__}",
                fix="`target(labels)` gives what the loss needs of an utterance's labels.",
                code="expert-invalid",
            )


def check_installed(name: str, expert_class: type) -> None:
    """Refuse a class that cannot be used as it is installed: also without corpus or settings.

    A run may bring the settings of a task that has no `config.yaml`; nothing else can.

    Raises:
        UserError: as :func:`check_class`; or a `TaskExpert` has no corpus, or no `config.yaml`.
    """
    check_class(name, expert_class)
    if not issubclass(expert_class, TaskExpert):
        return
    expert_class.check_corpus_type()
    path = settings_file(expert_class)
    if path is not None and not path.is_file():
        raise UserError(
            f"The package has no config.yaml beside `{expert_class.__module__}`: the settings of "
            f"the task {name!r} have no defaults.",
            where=str(path),
            fix="A wheel holds it if pyproject.toml says so, under [tool.setuptools.package-data].",
            code="expert-invalid",
        )
