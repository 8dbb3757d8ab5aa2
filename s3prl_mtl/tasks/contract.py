"""Check the class of an expert before it is built."""

from __future__ import annotations

from torch import nn

from s3prl_mtl.errors import UserError
from s3prl_mtl.tasks.base import TaskExpert
from s3prl_mtl.tasks.best_checkpoint import first_score
from s3prl_mtl.tasks.metric import add_settings_file, check_name, settings_file


def missing_parts(expert_class: type) -> str | None:
    """The part of the contract that the class lacks, as a sentence; None if complete."""
    if not issubclass(expert_class, nn.Module):
        return "It is not a torch.nn.Module."
    methods = [
        method
        for method in ("get_dataloader", "log_records")
        if not callable(getattr(expert_class, method, None))
    ]
    # The `forward` of nn.Module only raises.
    if expert_class.forward is nn.Module.forward:
        methods.append("forward")
    methods += sorted(getattr(expert_class, "__abstractmethods__", ()))
    if methods:
        return f"It does not define {', '.join(f'`{method}`' for method in methods)}."
    return None


def check_class(name: str, expert_class: type) -> None:
    """Raise an error if no run could use a class.

    Args:
        name: of the task.
        expert_class: the object of its entry point.

    Raises:
        UserError: the class is not a module, lacks methods, or has wrong declarations.
    """
    missing = missing_parts(expert_class)
    if missing is not None:
        raise UserError(
            f"The class of the task {name!r} cannot be used. {missing}",
            where=f"{expert_class.__module__}.{expert_class.__qualname__}",
            fix="See the contract in docs/plugins.md, and the example that `new-task` writes.",
            code="expert-invalid",
        )
    if issubclass(expert_class, TaskExpert):
        check_name(expert_class)
        first_score(expert_class)
        reads = ("target", "read", "get_dataloader")
        if all(getattr(expert_class, own) is getattr(TaskExpert, own) for own in reads):
            raise UserError(
                f"The class of the task {name!r} defines neither `target` nor `read`.",
                where=f"{expert_class.__module__}.{expert_class.__qualname__}",
                fix="`target(labels)` returns what the loss needs of the labels of an utterance.",
                code="expert-invalid",
            )


def check_installed(name: str, expert_class: type) -> None:
    """Raise an error if a class cannot be used as installed: with its own corpus and settings.

    Stricter than :func:`check_class`, as the config of a run may set what a missing `config.yaml`
    does not.

    Raises:
        UserError: as :func:`check_class`; or a `TaskExpert` has no corpus or no `config.yaml`.
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
            fix=add_settings_file(expert_class),
            code="expert-invalid",
        )
