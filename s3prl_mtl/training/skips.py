"""Count skipped steps and dropped tasks; abort after 50 in a row."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from s3prl_mtl.errors import SharedMistake

logger = logging.getLogger(__name__)

MAXIMUM_IN_A_ROW = 50
"""Consecutive steps with a non-finite loss or gradient that abort the run."""


class SkipCounts:
    """Counts of skipped steps, dropped tasks and divided steps, equal on all ranks.

    Args:
        tasks: names of the tasks of the run.

    Attributes:
        skipped_steps: steps without an update, because the gradient norm was not finite.
        dropped_steps: for each task the steps without it, because its loss was not finite.
        steps_in_parts: steps in several micro-batches, because the memory of a GPU was short.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self.dropped_steps = dict.fromkeys(tasks, 0)
        self.dropped_in_a_row = dict.fromkeys(tasks, 0)
        self.steps_in_parts = 0

    def count_losses(self, step: int, dropped: Collection[str]) -> None:
        """Count the tasks dropped from a step.

        Raises:
            UserError: a task has been dropped from too many steps in a row.
        """
        for task in self.dropped_steps:
            if task not in dropped:
                self.dropped_in_a_row[task] = 0
                continue
            self.dropped_steps[task] += 1
            self.dropped_in_a_row[task] += 1
            logger.warning(
                "The loss of %s in step %d is not finite: the step is taken without this task "
                "(%d steps so far).",
                *(task, step, self.dropped_steps[task]),
            )
            if self.dropped_in_a_row[task] >= MAXIMUM_IN_A_ROW:
                raise SharedMistake(
                    f"The loss of {task} has not been finite for {MAXIMUM_IN_A_ROW} steps in a "
                    "row.",
                    where=f"step {step}, task {task}",
                    fix="Start a new run from the weights of the last checkpoint (-i) with a lower "
                    f"`optimizer.lr` or without {task}, or check its corpus and settings.",
                    code="non-finite",
                )

    def count_norm(self, step: int, norm: float, sources: Sequence[str]) -> None:
        """Count a step with a non-finite gradient norm; a finite norm resets the row.

        Args:
            step: its number.
            norm: of all gradients together.
            sources: modules of this rank with a non-finite gradient.

        Raises:
            UserError: too many steps in a row were skipped.
        """
        if math.isfinite(norm):
            self.skipped_in_a_row = 0
            return
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        found = ", ".join(sources) or "on another rank"
        logger.warning(
            "The gradient norm of step %d is %s (%s): the step is skipped (%d steps so far).",
            *(step, norm, found, self.skipped_steps),
        )
        if self.skipped_in_a_row >= MAXIMUM_IN_A_ROW:
            raise SharedMistake(
                f"The gradient has not been finite for {MAXIMUM_IN_A_ROW} steps in a row "
                f"({found}).",
                where=f"step {step}",
                fix="Start a new run from the weights of the last checkpoint (-i) with a lower "
                "`optimizer.lr`.",
                code="non-finite",
            )

    def counts(self) -> dict[str, int]:
        """The counts above zero, by the names of their metrics."""
        named = {"skipped_steps": self.skipped_steps, "steps_in_parts": self.steps_in_parts}
        named |= {f"dropped_steps_{task}": count for task, count in self.dropped_steps.items()}
        return {name: count for name, count in named.items() if count}

    def state_dict(self) -> dict[str, Any]:
        return {
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "dropped_steps": dict(self.dropped_steps),
            "dropped_in_a_row": dict(self.dropped_in_a_row),
            "steps_in_parts": self.steps_in_parts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counts; absent counts are zero."""
        self.skipped_steps = state.get("skipped_steps", 0)
        self.skipped_in_a_row = state.get("skipped_in_a_row", 0)
        self.steps_in_parts = state.get("steps_in_parts", 0)
        for task in self.dropped_steps:
            self.dropped_steps[task] = state.get("dropped_steps", {}).get(task, 0)
            self.dropped_in_a_row[task] = state.get("dropped_in_a_row", {}).get(task, 0)
