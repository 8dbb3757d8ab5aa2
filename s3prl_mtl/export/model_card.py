"""The model card of an export: `README.md` with metadata for the hub, filled from the run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from s3prl_mtl.checkpoint.files import STATES_PATTERN
from s3prl_mtl.config.task_blocks import uses_tables
from s3prl_mtl.data.corpus_report import COMPLETE, CorpusSizes, SplitCounts
from s3prl_mtl.errors import UserError
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.export.task_inputs import input_of, shared_weights
from s3prl_mtl.fileio.text_tables import markdown_table
from s3prl_mtl.tracking.results_table import Result
from s3prl_mtl.training.run_record import RunRecord, flat
from s3prl_mtl.upstreams.hubert.transformers_format import HUGGING_FACE

CARD = "README.md"
TO_DO = "TODO"
BASE_MODELS = {
    "hubert": "facebook/hubert-base-ls960",
    "hubert_base": "facebook/hubert-base-ls960",
    "hubert_large_ll60k": "facebook/hubert-large-ll60k",
}
"""The names on the hub of the checkpoints of upstreams."""
HUB_DATASETS = {
    "LibriSpeech": "openslr/librispeech_asr",
    "Speech Commands v0.01": "google/speech_commands",
}
"""The names on the hub of corpora, by title."""
TASK_TYPES = {
    "asr": "automatic-speech-recognition",
    "pr": "phoneme-recognition",
    "sf": "slot-filling",
    "sv": "speaker-verification",
    "sd": "speaker-diarization",
    **dict.fromkeys(("ks", "ic", "sid", "er"), "audio-classification"),
}
"""Types of tasks in the metadata; another package's task has its own name."""
NOT_RECORDED = "platform"
"""Key of the versions that is left out: the machine is not a property of the model."""


def model_card(run: SavedRun, states: int, repository: str | None = None) -> str:
    """The text of the card. It depends on the run only, and names no folder of this machine.

    Args:
        run: the run.
        states: number of hidden states of its encoder.
        repository: the name that the model will have on the hub, if it is known.
    """
    card = _Card(run, states, repository)
    metadata = yaml.safe_dump(card.metadata(), sort_keys=False, allow_unicode=True)
    return f"---\n{metadata}---\n\n" + "\n\n".join(card.sections()) + "\n"


def count_fields(folder: Path) -> int:
    """The number of fields to fill in of the card in a folder; 0 without a card."""
    path = folder / CARD
    return path.read_text(encoding="utf-8").count(TO_DO) if path.is_file() else 0


def folder_of_run(checkpoint: Path) -> Path | None:
    """The folder of the run that saved a checkpoint; None for a file of unknown origin, such as a
    merged one, to which no results belong."""
    if STATES_PATTERN.fullmatch(checkpoint.name):
        folder = checkpoint.parent
    elif checkpoint.name.endswith("-best.ckpt"):
        folder = checkpoint.parent.parent
    else:
        return None
    return folder if (folder / "config.yaml").is_file() else None


@dataclass(frozen=True)
class _Card:
    run: SavedRun
    states: int
    repository: str | None
    record: RunRecord | None = field(init=False)

    def __post_init__(self) -> None:
        folder = folder_of_run(self.run.path)
        object.__setattr__(self, "record", None if folder is None else RunRecord(folder))

    @property
    def results(self) -> list[Result]:
        return [] if self.record is None else self.record.results

    @property
    def corpora(self) -> Mapping[str, CorpusSizes]:
        return {} if self.record is None else self.record.corpora

    @property
    def tasks(self) -> list[str]:
        return list(self.run.checkpoint.config.get("downstream") or self.run.heads)

    @property
    def title(self) -> str:
        return self.repository or f"{_last_name(self.run.upstream_name)}-{'-'.join(self.tasks)}"

    @property
    def base_model(self) -> str | None:
        settings = self.run.checkpoint.upstream_config
        config = self.run.checkpoint.config
        if config.get("init_upstream_ckpt") or (
            config.get("init_ckpt") and not config.get("init_heads_only")
        ):
            return None  # the weights began as those of another file
        if settings.name.startswith(HUGGING_FACE):
            name = settings.name.removeprefix(HUGGING_FACE)
            known = not name.startswith(("~", ".")) and not Path(name).exists()
            return name.partition("@")[0] if known and name.count("/") == 1 else None
        return BASE_MODELS.get(settings.name) if settings.ckpt is None else None

    def _corpus(self, task: str) -> str:
        """The name of the corpus of a task; empty if it is not known."""
        if uses_tables(self.run.checkpoint.config.get(task) or {}):
            return "own data"
        return self.corpora[task].title if task in self.corpora else ""

    def has_weights_of(self, result: Result) -> bool:
        """Whether a result was measured with the exported weights."""
        return result.last.step == self.run.step

    # ------------------------------------------------------------------------ metadata

    def metadata(self) -> dict[str, Any]:
        """The metadata, in the names of the hub."""
        own = [result for result in self.results if self.has_weights_of(result)]
        index = [self._indexed(result) for result in own if result.last.value is not None]
        corpora = {sizes.title: sizes for sizes in self.corpora.values()}
        entries: dict[str, Any] = {
            "library_name": "transformers",
            "pipeline_tag": "feature-extraction",
            "base_model": self.base_model,
            "tags": ["s3prl-mtl", "speech", "multi-task", *map(_tag, self.tasks)],
            "datasets": list(filter(None, map(_hub_dataset, corpora.values()))),
            "metrics": list(dict.fromkeys(result.metric.name for result in self.results)),
            "model-index": index and [{"name": self.title, "results": index}],
        }
        return {key: value for key, value in entries.items() if value}

    def _indexed(self, result: Result) -> dict[str, Any]:
        sizes = self.corpora.get(result.task)
        title = self._corpus(result.task) or "unknown"
        value = result.last.value or 0.0
        percent = result.metric.percent
        return {
            "task": {"type": TASK_TYPES.get(result.task, _tag(result.task)), "name": result.task},
            "dataset": {
                "name": title + _incomplete(sizes, result.split),
                "type": (sizes and _hub_dataset(sizes)) or _tag(title),
                "split": result.split,
            },
            "metrics": [
                {
                    "type": result.metric.name,
                    "value": round(100 * value if percent else value, 4),
                    "name": f"{result.metric.title}{' (%)' if percent else ''}",
                }
            ],
        }

    # ------------------------------------------------------------------------ text

    def sections(self) -> Iterator[str]:
        yield f"# {self.title}"
        yield self._introduction()
        yield "## Load\n\n" + self._loading()
        yield "## Results\n\n" + self._results()
        yield "## Corpora\n\n" + self._corpora()
        yield "## Layer weights\n\n" + self._layer_weights()
        yield "## Settings and versions\n\n" + self._settings()
        yield (
            f"## Licence\n\n{TO_DO}: name the licence here, and its identifier as `license:` in "
            "the metadata above. The licences of the pre-trained encoder and of the corpora apply."
        )
        yield f"## Limits\n\n{TO_DO}: intended use, languages and recordings, known failures."
        yield f"## Citation\n\n{TO_DO}: the publication of this model."

    def _introduction(self) -> str:
        config = self.run.checkpoint.config
        runner = config.get("runner") or {}
        total = runner.get("total_steps")
        frozen = self.run.checkpoint.upstream_config.freeze
        if self.record is None:
            what = "which may have been changed after the run, as by merging"
        elif frozen or self.run.step <= (runner.get("unfreeze_after") or 0):
            what = "which stayed as it was before (frozen)"
        else:
            what = "tuned on all tasks at once" if len(self.tasks) > 1 else "tuned"
        steps = f"step {self.run.step}" + (f" of {total}" if total else "")
        return (
            f"Speech encoder of a multi-task run of s3prl-mtl: `{_shown(self.run.upstream_name)}`, "
            f"{what}. Tasks: {', '.join(self.tasks)}. Weights: `{self.run.path.name}`, {steps}. "
            "The heads of the tasks are not in this folder."
        )

    def _loading(self) -> str:
        name = self.repository or "FOLDER"
        own_code = self.run.has_own_code
        trust = ", trust_remote_code=True, revision=COMMIT" if own_code else ""
        flags = "@COMMIT --trust_remote_code" if own_code else ""
        lines = [
            "```python",
            "from transformers import AutoModel",
            "",
            f'model = AutoModel.from_pretrained("{name}"{trust}).eval()',
            "```",
            "",
            "16 kHz. `preprocessor_config.json` says whether waveforms are normalised. Batches of "
            "one utterance, or of equal lengths, give the features that the heads were trained on. "
            "With s3prl-mtl:",
            "",
            "```",
            f"s3prl-mtl train -u {HUGGING_FACE}{name}{flags} -d TASKS --data DIR",
            "```",
        ]
        return "\n".join(lines)

    def _results(self) -> str:
        if self.record is None:
            return "Not known: the weights are not those of a checkpoint that a run saved."
        problem = f"The run is {self.record.problem}. " if self.record.problem else ""
        if not self.results:
            return problem + "It has no results."
        rows = [
            [
                result.task,
                self._corpus(result.task),
                result.split,
                result.title,
                result.shown(result.last),
                result.last.source,
                "yes" if self.has_weights_of(result) else "no",
            ]
            for result in self.results
        ]
        header = ["task", "corpus", "split", "metric", "result", "checkpoint", "these weights"]
        text = (
            f"{problem}With the heads of the run. Each row names the checkpoint that it was "
            "measured with; the metadata have those of the weights in this folder "
            f"(step {self.run.step}).\n\n"
        )
        conditions = {task: self.record.conditions(task) for task in self.tasks}
        notes = "".join(f"\n- {task}: {said}" for task, said in conditions.items() if said)
        return text + markdown_table(header, rows) + (f"\n{notes}" if notes else "")

    def _corpora(self) -> str:
        if not self.corpora:
            return "The sizes of the corpora were not recorded."
        rows = []
        for task, sizes in self.corpora.items():
            block = self.run.checkpoint.config.get(task) or {}
            for split in sizes.splits:
                share = float(block.get("fraction", 1.0)) if split is sizes.splits[0] else 1.0
                used = "" if share == 1.0 else f" (trained on {share:g} of them)"
                rows.append([task, self._corpus(task), split.split, *_counts(split, used)])
        header = ["task", "corpus", "split", "utterances", "hours", "speakers", "classes"]
        note = "\n\nThe layout on disk decides the name of a corpus; `of N` is its published size."
        return markdown_table(header, rows) + note

    def _layer_weights(self) -> str:
        kinds: dict[str, list[str]] = {}
        for task in self.tasks:
            try:
                kind = str(input_of(self.run, task))
            except UserError:  # its package may have been uninstalled
                kind = "unknown"
            kinds.setdefault(kind, []).append(task)
        said = {
            "features": "Input of {}: the sum of the hidden states, each times its weight below.",
            "hidden_states": "Input of {}: all hidden states.",
            "masked": "Input of {}: the last hidden state of masked audio.",
            "unknown": "Input of {}: not known, not installed where this card was written.",
        }
        text = " ".join(said[kind].format(", ".join(names)) for kind, names in kinds.items())
        weights = shared_weights(self.run, self.states)
        last = self.states - 1
        rows = []
        for index, weight in enumerate(weights):
            place = "last_hidden_state" if index == last else f"hidden_states[{index}]"
            what = "input of the first layer" if index == 0 else f"output of layer {index}"
            rows.append([str(index), f"`output.{place}`", what, f"{weight:.4f}"])
        header = ["hidden state", "in transformers", "", "weight"]
        learned = (
            "The run did not learn weights"
            if self.run.layer_weights is None
            else "The weights are learned, and shared by the tasks"
        )
        return (
            f"{text} {learned} (`{self.run.feature_selection}`). `output` is that of "
            "`model(..., output_hidden_states=True)`.\n\n" + markdown_table(header, rows)
        )

    def _settings(self) -> str:
        lines = {
            name: _shown(value)
            for name, value in flat(self.run.checkpoint.config)
            if value and not _is_of_this_machine(value)
        }
        versions = {} if self.record is None else dict(self.record.versions)
        versions.pop(NOT_RECORDED, None)
        found = _details("Settings", lines)
        if not versions:
            return found + "\n\nThe versions of the packages were not recorded."
        return found + "\n\n" + _details("Versions", versions)


def _counts(split: SplitCounts, used: str) -> list[str]:
    official = split.official
    published = "" if official is None else f" of {official.utterances}"
    return [
        f"{split.utterances}{published if official and official.utterances else ''}{used}",
        f"{split.hours:.2f}",
        "" if split.speakers is None else str(split.speakers),
        "" if split.classes is None else str(split.classes),
    ]


def _hub_dataset(sizes: CorpusSizes) -> str | None:
    """The name on the hub of a corpus, if its first split is complete: a corpus of one's own may
    have the layout of a published one."""
    first = sizes.splits[0]
    published = first.official.utterances if first.official is not None else None
    complete = published is not None and COMPLETE * published <= first.utterances <= published
    return HUB_DATASETS.get(sizes.title) if complete else None


def _incomplete(sizes: CorpusSizes | None, split: str) -> str:
    """The share of the published split in the corpus; empty if it is complete."""
    for found in sizes.splits if sizes is not None else ():
        published = found.official.utterances if found.official is not None else None
        if found.split == split and published and found.utterances < COMPLETE * published:
            return f" ({found.utterances} of {published} utterances)"
    return ""


def _is_of_this_machine(value: str) -> bool:
    """Whether a setting names a file or folder, also in a list."""
    return "'/" in value or value.startswith(("/", "~", "./", "../"))


def _shown(name: str) -> str:
    """The name of an upstream, without the folder of a local one."""
    prefix, rest = ("", name)
    if name.startswith(HUGGING_FACE):
        prefix, rest = HUGGING_FACE, name.removeprefix(HUGGING_FACE)
    local = os.path.isabs(rest) or rest.startswith(("~", "."))
    return f"{prefix}{Path(rest).name}" if local else name


def _last_name(upstream: str) -> str:
    return _tag(Path(upstream.removeprefix(HUGGING_FACE).partition("@")[0]).name)


def _tag(text: str) -> str:
    """A name of letters, digits, dots and hyphens."""
    return "-".join("".join(c if c.isalnum() or c in "._" else " " for c in text.lower()).split())


def _details(title: str, entries: Mapping[str, str]) -> str:
    rows = [[f"`{name}`", value] for name, value in entries.items()]
    table = markdown_table(["name", "value"], rows)
    return f"<details><summary>{title}</summary>\n\n{table}\n\n</details>"
