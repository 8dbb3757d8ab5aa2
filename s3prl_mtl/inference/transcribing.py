"""Options of transcripts: a decoder with a language model, n-best lists, times."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from s3prl_mtl.config import RunConfig
from s3prl_mtl.config.task_blocks import DECODER_FILES
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tasks.ctc import TranscriptionExpert


@dataclass(frozen=True)
class Transcribing:
    """Prediction settings of the transcription tasks of a run.

    Args:
        decoder: settings that replace those of the run, for tasks that have a decoder; None leaves
            them unchanged. Paths of files become absolute.
        nbest: transcripts of a prediction; more than one need a language model.
        timestamps: whether predictions have `times`.

    Raises:
        UserError: `nbest` is not a positive integer.
    """

    decoder: Mapping[str, Any] | None = None
    nbest: int = 1
    timestamps: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.nbest, bool) or not isinstance(self.nbest, int) or self.nbest < 1:
            raise UserError(
                f"The number of transcripts is at least 1, not {self.nbest!r}.",
                where="nbest",
                code="invalid-value",
            )

        if self.decoder is not None:
            given = {
                key: os.path.abspath(os.path.expanduser(value))
                if key in DECODER_FILES and isinstance(value, str | os.PathLike)
                else value
                for key, value in self.decoder.items()
            }
            object.__setattr__(self, "decoder", given)

    def decode_in(self, config: RunConfig) -> RunConfig:
        """The config with the decoder in the blocks of the tasks that take one.

        Raises:
            UserError: no task takes one.
        """
        if self.decoder is None:
            return config
        given = self.decoder
        tasks, is_taken = dict(config.tasks), False
        for name, block in config.tasks.items():
            expert = load_task(name, block.package, folder=block.folder)
            if getattr(expert, "takes_decoder", False):
                is_taken, own = True, block.downstream_expert
                decoder = {**(own.get("decoder") or {}), **given}
                tasks[name] = replace(block, downstream_expert={**own, "decoder": decoder})
        if not is_taken:
            raise _no_task("decoder", "asr")
        return replace(config, tasks=tasks)

    def apply(self, experts: Mapping[str, Any]) -> None:
        """Set the options of experts.

        Raises:
            UserError: no task takes one of the options.
        """
        known: list[Any] = [e for e in experts.values() if isinstance(e, TranscriptionExpert)]
        if self.timestamps:
            if not known:
                raise _no_task("timestamps", "asr or pr")
            for expert in known:
                expert.timestamps = True
        if self.nbest > 1:
            searching = [e for e in known if getattr(e, "search", None) is not None]
            if not searching:
                raise UserError(
                    "Several transcripts need a task that decodes with a language model.",
                    where="nbest",
                    fix="Give asr a `decoder` with `lm` and `lexicon`.",
                    code="missing-option",
                )
            for expert in searching:
                expert.nbest = self.nbest


GREEDY = Transcribing()


def parse_decoder(text: str, where: str) -> dict[str, Any]:
    """The settings of `lm=4-gram.arpa,lexicon=words.txt,beam=50`.

    Raises:
        UserError: a part is not of the form `name=value`.
    """
    settings: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            settings[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not name.strip():
            raise UserError(
                f"{part!r} is not of the form name=value.",
                where=where,
                fix="For example: lm=4-gram.arpa,lexicon=words.txt,beam=50.",
                code="invalid-value",
            )
    return settings


def _no_task(option: str, tasks: str) -> UserError:
    return UserError(
        f"No loaded task takes `{option}`.",
        where=option,
        fix=f"Load {tasks}, or leave it out.",
        code="missing-option",
    )
