"""The results of a run, as `train` and `evaluate` return them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_mtl.errors import SharedMistake, UserError

if TYPE_CHECKING:
    from s3prl_mtl.inference.trained import TrainedRun


@dataclass(frozen=True)
class RunResults:
    """A run in its folder.

    Attributes:
        folder: of the run, an absolute path: the program may change its working directory.
        step: the last step of the training; of an evaluation the step of the weights, None if the
            tasks were evaluated with checkpoints of several steps.
        results: `{task: {split: {metric: value}}}`, fractions: of `train` the last evaluation of
            every split and, as the task `featurizer`, the layer weights; of `evaluate` the
            evaluated splits. Empty on all ranks but the first of several, and after a dry run.
        splits: the pairs of task and split that `evaluate` evaluated.
        config: the settings that `evaluate` used.
        is_lead: False on all ranks but the first.
    """

    folder: Path
    step: int | None
    results: Mapping[str, Mapping[str, Mapping[str, float]]]
    splits: Sequence[tuple[str, str]] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_lead: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(os.path.abspath(self.folder)))

    def load(
        self, tasks: Sequence[str] | None = None, device: str = "auto", **options: Any
    ) -> TrainedRun:
        """The encoder and the heads, for predictions; `options` are those of `s3prl_mtl.load`."""
        from s3prl_mtl.inference.loading import load

        return load(self.folder, tasks, device, **options)

    def records(self, all: bool = False) -> list[dict[str, Any]]:
        """The last value of every metric of the run, with step and checkpoint (`results`)."""
        from s3prl_mtl.api.reports import results

        return results([self.folder], all=all)


class UnscoredSplits(SharedMistake):
    """Splits that could not be scored. The run is saved, the other splits are scored.

    Attributes:
        results: of the run.
    """

    def __init__(self, error: UserError, results: RunResults) -> None:
        super().__init__(error.what, where=error.where, fix=error.fix, code=error.code)
        self.results = results
