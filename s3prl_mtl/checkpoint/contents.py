"""Contents of a checkpoint: typed, built from a run's modules, restored into them.

A file holds them as nested dictionaries of tensors and plain values, keyed as in `to_dict`:

    Format 2 · Step · Tallies · Config · Upstream · UpstreamInfo · Featurizer ·
    Tasks {task: Downstream · Labels · Decision · Stream}

and `states-<step>.ckpt` also the keys of `TrainingState`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from s3prl_mtl.config.schema import UpstreamConfig
from s3prl_mtl.distributed.shares import Placement
from s3prl_mtl.errors import UserError
from s3prl_mtl.upstreams import Upstream

FORMAT = 2


@dataclass(frozen=True, eq=False)
class TaskCheckpoint:
    """One task of a checkpoint.

    Attributes:
        head: state dict of the expert.
        labels: label space; None where the file has none (s3prl's experts, the branch).
        decision: values chosen on the dev split, such as a threshold; plain.
    """

    head: dict[str, Any]
    labels: dict[str, Any] | None
    decision: dict[str, Any]

    @classmethod
    def capture(cls, expert: Any) -> TaskCheckpoint:
        """The state of an expert, on the CPU."""
        head = on_cpu(expert.state_dict())
        return cls(head, getattr(expert, "labels", None), getattr(expert, "decision", {}))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> TaskCheckpoint:
        _require(content, ("Downstream", "Labels", "Decision"), where)
        return cls(content["Downstream"], content["Labels"], content["Decision"])

    def to_dict(self) -> dict[str, Any]:
        return {"Downstream": self.head, "Labels": self.labels, "Decision": self.decision}


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """State of an optimizer by the names of its parameters, whichever rank holds them.

    Attributes:
        groups: settings of each parameter group, such as `lr` and `betas`, by its `part`. A group
            without a part is the only one; its key is empty.
        state: {parameter: {"step": ..., "exp_avg": ..., ...}}.
    """

    groups: dict[str, dict[str, Any]]
    state: dict[str, dict[str, Any]]

    @classmethod
    def capture(cls, optimizer: Optimizer, names: Mapping[str, nn.Parameter]) -> OptimizerState:
        """The state of an optimizer, on the CPU.

        Args:
            optimizer: its groups have different parts.
            names: its parameters by name.
        """
        whole = optimizer.state_dict()
        groups = {
            group.get("part", ""): {key: value for key, value in group.items() if key != "params"}
            for group in whole["param_groups"]
        }
        listed = _in_order(optimizer, names)
        state = {name: whole["state"][i] for i, name in enumerate(listed) if i in whole["state"]}
        return cls(groups, on_cpu(state))

    def restore(self, optimizer: Optimizer, names: Mapping[str, nn.Parameter]) -> None:
        """Restore the state of those parameters that this optimizer has.

        Args:
            optimizer: it has the same groups.
            names: its parameters by name.

        Raises:
            UserError: it has other groups.
        """
        held = optimizer.state_dict()["param_groups"]
        parts = [group.get("part", "") for group in held]
        if set(parts) != set(self.groups):
            raise UserError(
                "The optimizer of the checkpoint has other parameter groups than that of the run.",
                where="optimizer.groups",
                fix="Leave it as it was when the checkpoint was saved, or start a new run.",
                code="resume-conflict",
            )
        state = {
            i: self.state[name]
            for i, name in enumerate(_in_order(optimizer, names))
            if name in self.state
        }
        groups = [
            {**self.groups[part], "params": group["params"]}
            for part, group in zip(parts, held, strict=True)
        ]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> OptimizerState:
        if "Groups" in content:
            _require(content, ("State",), where)
            return cls(content["Groups"], content["State"])
        _require(content, ("Settings", "State"), where)
        return cls({"": content["Settings"]}, content["State"])

    def to_dict(self) -> dict[str, Any]:
        if set(self.groups) == {""}:
            return {"Settings": self.groups[""], "State": self.state}
        return {"Groups": self.groups, "State": self.state}


def _in_order(optimizer: Optimizer, names: Mapping[str, nn.Parameter]) -> list[str]:
    """The names of the parameters of an optimizer, in its order."""
    by_parameter = {parameter: name for name, parameter in names.items()}
    return [by_parameter[p] for group in optimizer.param_groups for p in group["params"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingState:
    """State that resuming needs beside the weights.

    Attributes:
        evaluated_step: last step after which the dev splits were evaluated.
        optimizer: of all parameters.
        scheduler: state dict of the learning rate schedule, if there is one.
        placement: the shares of the tasks on each rank.
        streams: position of each task in its training data.
        unused: names of parameters without a gradient; None while not known.
        random: states of the random generators of each rank.
        balancer: state dict of the balancer; None in files of earlier versions, as the next.
        micro_batches: division of a step into micro-batches.
    """

    evaluated_step: int
    optimizer: OptimizerState
    scheduler: dict[str, Any] | None
    placement: Placement
    streams: dict[str, dict[str, Any]]
    unused: list[str] | None
    random: list[dict[str, Any]]
    balancer: dict[str, Any] | None = None
    micro_batches: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> TrainingState:
        keys = ("EvaluatedStep", "Optimizer", "Scheduler", "Placement", "Unused", "Random")
        _require(content, keys, where)
        for name, task in content["Tasks"].items():
            _require(task, ("Stream",), f"task {name} in {where}")
        return cls(
            evaluated_step=content["EvaluatedStep"],
            optimizer=OptimizerState.from_dict(content["Optimizer"], f"Optimizer in {where}"),
            scheduler=content["Scheduler"],
            placement=Placement.from_plain(content["Placement"]),
            streams={name: task["Stream"] for name, task in content["Tasks"].items()},
            unused=content["Unused"],
            random=content["Random"],
            balancer=content.get("Balancer"),
            micro_batches=content.get("MicroBatches"),
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields except `streams`, which a file stores by task."""
        return {
            "EvaluatedStep": self.evaluated_step,
            "Optimizer": self.optimizer.to_dict(),
            "Scheduler": self.scheduler,
            **({} if self.balancer is None else {"Balancer": self.balancer}),
            **({} if self.micro_batches is None else {"MicroBatches": self.micro_batches}),
            "Placement": self.placement.to_plain(),
            "Unused": self.unused,
            "Random": self.random,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class RunCheckpoint:
    """A checkpoint of a run: `states-<step>.ckpt` or a `*-best.ckpt`.

    Attributes:
        step: updates taken.
        skips: counts of skipped and dropped steps.
        config: settings of the run, references kept; of the branch, a layer over the defaults.
        upstream: state dict of the encoder, fairseq's names under `model.` as s3prl has them.
            Empty in checkpoints of the branch with a frozen encoder.
        upstream_info: what rebuilds the encoder without its original file; None where only its
            plugin can.
        featurizer: state dict.
        tasks: by name; one task in a best checkpoint.
        training: None in best checkpoints and those of other programs.
        origin: the program that wrote it, if it is not this one.
        file: that it was read from, for errors.
    """

    step: int
    skips: dict[str, Any]
    config: dict[str, Any]
    upstream: dict[str, Any]
    upstream_info: dict[str, Any] | None
    featurizer: dict[str, Any]
    tasks: dict[str, TaskCheckpoint]
    training: TrainingState | None = None
    origin: str | None = None
    file: Path | None = field(default=None, compare=False)

    @property
    def upstream_config(self) -> UpstreamConfig:
        """The settings of the encoder, as saved.

        Raises:
            UserError: one is missing.
        """
        own = self.config.get("upstream") or {}
        settings = {entry.name: entry.default for entry in fields(UpstreamConfig)}
        needed = [name for name, default in settings.items() if default is MISSING]
        _require(own, needed, "upstream in the config of the checkpoint")
        return UpstreamConfig(**{name: own[name] for name in settings if name in own})

    @classmethod
    def capture(
        cls,
        config: dict[str, Any],
        step: int,
        skips: dict[str, Any],
        upstream: Upstream,
        featurizer: nn.Module,
        tasks: Mapping[str, TaskCheckpoint],
        training: TrainingState | None = None,
    ) -> RunCheckpoint:
        """A checkpoint of modules with their current weights."""
        return cls(
            step=step,
            skips=skips,
            config=config,
            upstream=upstream.s3prl_state_dict(),
            upstream_info=upstream.checkpoint_info,
            featurizer=featurizer.state_dict(),
            tasks=dict(tasks),
            training=training,
        )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> RunCheckpoint:
        """Read the dictionary of a file.

        Raises:
            UserError: a part is missing.
        """
        keys = ("Step", "Tallies", "Config", "Upstream", "UpstreamInfo", "Featurizer", "Tasks")
        _require(content, keys, where)
        return cls(
            step=content["Step"],
            skips=content["Tallies"],
            config=content["Config"],
            upstream=content["Upstream"],
            upstream_info=content["UpstreamInfo"],
            featurizer=content["Featurizer"],
            tasks={
                name: TaskCheckpoint.from_dict(task, f"task {name} in {where}")
                for name, task in content["Tasks"].items()
            },
            training=TrainingState.from_dict(content, where) if "Optimizer" in content else None,
            origin=content.get("Origin"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that a file holds: tensors and plain values."""
        tasks = {name: task.to_dict() for name, task in self.tasks.items()}
        if self.training is not None:
            for name, stream in self.training.streams.items():
                tasks[name]["Stream"] = stream
        return {
            "Format": FORMAT,
            **({} if self.origin is None else {"Origin": self.origin}),
            "Step": self.step,
            "Tallies": self.skips,
            "Config": self.config,
            "Upstream": self.upstream,
            "UpstreamInfo": self.upstream_info,
            "Featurizer": self.featurizer,
            "Tasks": tasks,
            **({} if self.training is None else self.training.to_dict()),
        }


def _require(content: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    missing = [key for key in keys if key not in content]
    if missing:
        raise UserError(
            "The checkpoint is incomplete.",
            where=f"{', '.join(missing)} of {where}",
            fix="Give another checkpoint.",
            code="checkpoint-incomplete",
        )


def on_cpu(value: Any) -> Any:
    """A copy of nested mappings and lists with all tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: on_cpu(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [on_cpu(entry) for entry in value]
    return value
