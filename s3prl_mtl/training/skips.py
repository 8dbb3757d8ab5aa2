"""What a run had to leave out: counted, said, and ended where there is no end to it."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from s3prl_mtl.errors import SharedMistake

logger = logging.getLogger(__name__)

MAXIMUM_IN_A_ROW = 50
"""Steps in a row that may be lost to a loss or a gradient that is no number."""


class SkipCounts:
    """Counts the steps that were skipped, and the tasks that were left out of one.

    Every rank counts the same, since all of them agree on what is left out.

    Args:
        tasks: of the run.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.step = 0
        """The step that is being taken, the first is 1."""
        self.skipped_steps = 0
        """Steps without an update, because the norm of the gradient was not finite."""
        self.skipped_in_a_row = 0
        self.dropped_steps = dict.fromkeys(tasks, 0)
        """Steps that a task was left out of, because its loss was not finite."""
        self.dropped_in_a_row = dict.fromkeys(tasks, 0)
        self.steps_in_parts = 0
        """Steps that were taken again in parts, because the memory of a GPU was short."""

    def note_losses(self, dropped: Collection[str]) -> None:
        """Count a step, and the tasks whose loss was no number in it.

        Raises:
            UserError: a task has been without one for too long.
        """
        for task in self.dropped_steps:
            if task not in dropped:
                self.dropped_in_a_row[task] = 0
                continue
            self.dropped_steps[task] += 1
            self.dropped_in_a_row[task] += 1
            logger.warning(
                "The loss of %s in step %d is not a finite number: the step is taken without it "
                "(%d so far).",
                *(task, self.step, self.dropped_steps[task]),
            )
            if self.dropped_in_a_row[task] >= MAXIMUM_IN_A_ROW:
                raise SharedMistake(
                    f"The loss of {task} has not been a finite number for {MAXIMUM_IN_A_ROW} "
                    "steps in a row.",
                    where=f"step {self.step}",
                    fix="Start a new run from the weights of the last checkpoint (-i) with a lower "
                    f"`optimizer.lr` or without {task}, or look into its corpus and settings.",
                )

    def note_norm(self, norm: float, culprits: Sequence[str]) -> None:
        """Count a step whose gradient has this norm.

        Args:
            norm: of all gradients together.
            culprits: what has a gradient that is not finite, as far as this rank sees it.

        Raises:
            UserError: no step has had an effect for too long.
        """
        if math.isfinite(norm):
            self.skipped_in_a_row = 0
            return
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        logger.warning(
            "The gradient norm of step %d is %s (%s): the step is skipped (%d so far).",
            *(self.step, norm, ", ".join(culprits) or "on another rank", self.skipped_steps),
        )
        if self.skipped_in_a_row >= MAXIMUM_IN_A_ROW:
            raise SharedMistake(
                f"The gradient has not been finite for {MAXIMUM_IN_A_ROW} steps in a row "
                f"({', '.join(culprits)}).",
                where=f"step {self.step}",
                fix="Start a new run from the weights of the last checkpoint (-i) with a lower "
                "`optimizer.lr`.",
            )

    def note_retry(self, parts: int) -> None:
        """Count a step that is begun again in so many parts."""
        if parts == 2:
            self.steps_in_parts += 1
        logger.warning(
            "The memory of a GPU is too small for step %d: it is taken in %d parts (%d steps in "
            "parts so far).",
            *(self.step, parts, self.steps_in_parts),
        )

    def counts(self) -> dict[str, int]:
        """What is worth a curve: the counts that are not zero, by the names of metrics."""
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
        self.skipped_steps = state["skipped_steps"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.steps_in_parts = state["steps_in_parts"]
        for task in self.dropped_steps:
            self.dropped_steps[task] = state["dropped_steps"].get(task, 0)
            self.dropped_in_a_row[task] = state["dropped_in_a_row"].get(task, 0)
