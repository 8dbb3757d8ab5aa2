"""Describe a run before its training: what is trained, at which rate, and from which weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from s3prl_mtl.config import RunConfig
from s3prl_mtl.config.optimizer_groups import settings_of

ENCODER = "encoder"
FEATURIZER = "featurizer"


@dataclass(frozen=True)
class Source:
    """The origin of the weights of a part.

    Args:
        what: "random weights", "run", "best checkpoint", the name of an upstream.
        step: of the training that gave them.
        file: that they were read from.
    """

    what: str
    step: int | None = None
    file: str | Path = ""

    def cells(self) -> list[str]:
        return [self.what, "" if self.step is None else f"step {self.step}", str(self.file)]


def part_cells(module: nn.Module, source: Source) -> list[str]:
    """The trained and frozen parameters of a part, and the origin of its weights."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    counts = [
        f"{kind} ({_count(number)} parameters)"
        for kind, number in (("trained", trained), ("frozen", frozen))
        if number
    ]
    return [f"{', '.join(counts) or 'no parameters'}, from", *source.cells()]


def training_summary(config: RunConfig, parts: Mapping[str, list[str]], step: int) -> str:
    """One block of text: a row for each part with its parameters, and what, step and file of the
    weights that it starts from.

    Args:
        config: of the run.
        parts: `part_cells` of encoder, featurizer and every head, by name.
        step: steps taken.
    """
    optimizer, schedule = config.optimizer, config.scheduler
    rate = optimizer.get("lr")
    shown = f"learning rate {rate:g}" if isinstance(rate, float | int) else "its own learning rate"
    shown += " for all that is trained"
    if optimizer.get("groups"):
        trained = [part for part in parts if part != ENCODER or not config.upstream.freeze]
        shown = "learning rates " + ", ".join(_rate_of(part, config) for part in trained)
    decay = f"schedule {schedule['name']}" if schedule else "constant"
    warmup, steps = (schedule or {}).get("num_warmup_steps", 0), config.runner.total_steps
    if warmup > steps and optimizer.get("groups"):
        decay += f" (the warm-up of {warmup} steps ends at {steps / warmup:.0%} of the rates)"
    elif warmup > steps and isinstance(rate, float | int):
        decay += f" (the warm-up of {warmup} steps ends at {rate * steps / warmup:g})"
    rows = [[name, *cells] for name, cells in parts.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    what = f"Training steps {step + 1} to {steps}" if step < steps else f"No steps after {step}"
    lines = [
        f"{what} of {config.upstream.name} on {', '.join(config.downstream)}:",
        *(
            "  " + "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ),
        f"  {optimizer['name']}, {shown}, {decay}",
    ]
    frozen = config.runner.unfreeze_after or 0
    if step < frozen:
        lines.append(f"  The encoder is frozen up to step {frozen}.")
    lines += [f"  {line}" for line in _data_rules(config)]
    return "\n".join(lines)


def _data_rules(config: RunConfig) -> list[str]:
    """What differs from training on all data of all tasks in every step, as it is."""
    lines = []
    if config.runner.sampling != "all":
        lines.append(f"The tasks of a step: {config.runner.sampling}.")
    shares = {name: task.fraction for name, task in config.tasks.items() if task.fraction != 1}
    if shares:
        listed = ", ".join(f"{share:.3g} of {name}" for name, share in shares.items())
        lines.append(f"A share of the training utterances: {listed}.")
    perturb = config.perturb
    effects = [
        f"noise of {perturb.noise} at {perturb.snr[0]:g} to {perturb.snr[-1]:g} dB"
        if perturb.noise
        else "",
        f"reverberation of {perturb.reverb}" if perturb.reverb else "",
        f"speed {', '.join(f'{speed:g}' for speed in perturb.speed)}" if perturb.speed else "",
    ]
    if any(effects):
        where = "training" if perturb.splits == "train" else "evaluated"
        lines.append(f"Changed waveforms of {where} batches: {'; '.join(filter(None, effects))}.")
    return lines


def _rate_of(part: str, config: RunConfig) -> str:
    """A part with its learning rate, and the other settings of its group."""
    own = settings_of(part, config.optimizer["groups"])
    rate = own.pop("lr", config.optimizer.get("lr"))
    others = ", ".join(f"{name} {value:g}" for name, value in own.items())
    return f"{part} {rate:g}" + (f" ({others})" if others else "")


def _count(number: int) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
