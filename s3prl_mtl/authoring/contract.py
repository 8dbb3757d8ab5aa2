"""The contract of a task, line by line, and what was found out about a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clause:
    """One line of the contract, as `docs/plugins.md` numbers it."""

    number: int
    text: str


@dataclass(frozen=True)
class Finding:
    """Whether a task keeps a line of the contract.

    Args:
        clause: the line.
        holds: None where the line does not apply to the task, or was not checked.
        why: what was seen.
        checked: False: whether the line holds is not known, for want of a corpus or because the
            expert cannot be built.
    """

    clause: Clause
    holds: bool | None
    why: str
    checked: bool = True

    @property
    def verdict(self) -> str:
        """The finding in words."""
        if not self.checked:
            return "not checked"
        return {True: "holds", False: "does not hold", None: "not applicable"}[self.holds]

    def __str__(self) -> str:
        return f"{self.clause.number}. {self.clause.text} {self.verdict.upper()}: {self.why}"


_LINES = (
    "The class is a `torch.nn.Module` that is built from `upstream_dim`, `upstream_rate`, "
    "`downstream_expert` and `expdir`, all by keyword, with the settings of the `config.yaml` "
    "beside its module; whatever else the runner passes does not disturb it.",
    "It keeps its label space in `labels`, plain JSON; built with `labels=` it needs nothing of "
    "the corpus and has the same parameters.",
    "A misspelt setting is refused: `config.yaml` lists every setting, or the class checks them.",
    "`get_dataloader(split)` gives, for every split that the task's block names, batches `(wavs, "
    "*others)` of at least one utterance: 1-D waveforms at 16 kHz, finite, within [-1, 1], of at "
    "least 400 samples.",
    "The batches of an epoch follow from the seed and the epoch's number: read twice they are the "
    "same, and reading can begin after any of them.",
    "Loader workers can be used: what is sent to them can be pickled, and with one worker the "
    "batches are the same, whether it is forked or spawned.",
    "Two shares of a training epoch, each read by a process of its own, hold all its utterances, "
    "each once.",
    "`forward(split, features, *others, records=...)` takes the batches of every split and returns "
    "a scalar that is finite.",
    "The training loss has a finite gradient for the features and for every parameter.",
    "A batch may hold a single utterance.",
    "What `forward` records are lists, and other processes can be sent them.",
    "`log_records` reports by `logger.add_scalar` each number that `metrics` declares: finite, and "
    "within the metric's `range`, by default a fraction in [0, 1].",
    "`log_records` gives the names of the checkpoints to keep: plain file names, or none at all. A "
    "`TaskExpert` keeps one of its first evaluation on dev whose value is inside the range.",
    "`log_records` copes with the records of no batch, and then reports nothing made up.",
    "An evaluation that is divided between two processes reports what one process reports.",
    "A training step that is divided between two processes has the loss and the gradient of one "
    "process that takes the same batches.",
    "All that was learned is in `state_dict()`: loaded strictly into a new expert it gives the "
    "same loss.",
    "`predict(features, lengths_samples)`, where there is one, gives a dict of plain JSON for each "
    "utterance.",
)

CONTRACT = tuple(Clause(number, text) for number, text in enumerate(_LINES, 1))
"""What the runner asks of a task, in the order in which `check-task` looks at it."""
