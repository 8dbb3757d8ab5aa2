"""Describe a run before its training: what is trained, at which rate, and from which weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from s3prl_mtl.config import RunConfig

ENCODER = "encoder"
FEATURIZER = "featurizer"


def part_text(module: nn.Module, source: str) -> str:
    """The trained and frozen parameters of a part, and the origin of its weights."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    counts = [
        f"{kind} ({_count(number)} parameters)"
        for kind, number in (("trained", trained), ("frozen", frozen))
        if number
    ]
    return f"{', '.join(counts) or 'no parameters'}, from {source}"


def training_summary(config: RunConfig, parts: Mapping[str, str], step: int) -> str:
    """One block of text.

    Args:
        config: of the run.
        parts: `part_text` of encoder, featurizer and every head, by name.
        step: steps taken.
    """
    optimizer, schedule = config.optimizer, config.scheduler
    rate = optimizer.get("lr")
    shown = f"learning rate {rate:g}" if isinstance(rate, float | int) else "its own learning rate"
    decay = f"schedule {schedule['name']}" if schedule else "constant"
    warmup, steps = (schedule or {}).get("num_warmup_steps", 0), config.runner.total_steps
    if warmup > steps and isinstance(rate, float | int):
        decay += f" (the warm-up of {warmup} steps ends at {rate * steps / warmup:g})"
    width = max(map(len, parts))
    lines = [
        f"Training steps {step + 1} to {config.runner.total_steps} of {config.upstream.name} on "
        f"{', '.join(config.downstream)}:",
        *(f"  {name:{width}}  {text}" for name, text in parts.items()),
        f"  {optimizer['name']}, {shown} for all that is trained, {decay}",
    ]
    return "\n".join(lines)


def _count(number: int) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
