"""VoxCeleb1 for speaker verification.

Layout: `dev/wav` and `test/wav`, each `<speaker>/<video>/<number>.wav`, or the speakers' folders in
another place (:mod:`downstream_plugins.voxceleb1`); and `veri_test2.txt`, one
line a trial: `<0|1> <speaker>/<video>/<number>.wav <speaker>/<video>/<number>.wav`.
"""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from downstream_plugins.voxceleb1 import (
    VoxCelebFiles,
    check_speakers,
    every_utterance,
    find_files,
    layout_findings,
    layout_problems,
    listed_name,
    missing_audio_path,
    speaker_of,
)
from s3prl_mtl.data import (
    SAMPLE_RATE,
    Corpus,
    Finding,
    Official,
    Utterance,
    absolute,
    apply_gain,
    audio_stem,
    listed_once,
    read_lines,
    trim_silence,
)
from s3prl_mtl.errors import UserError

TEST_SPEAKERS = frozenset(f"id{number}" for number in range(10270, 10310))
GAIN_DECIBELS = -3.0
MINIMUM_TRIMMED_SAMPLES = 2 * SAMPLE_RATE
DEV_TRIALS = 20_000
DEV_SPEAKERS = 40
DEV_SEED = 0
PUBLISHED = {"train": Official(speakers=1211), "test": Official(4708, speakers=len(TEST_SPEAKERS))}
"""Without the number of training utterances, which depends on the rule of 2 s."""


@dataclass(frozen=True)
class Trial:
    """A trial: two utterances of the same speaker (label 1) or of different speakers (0)."""

    label: int
    first_id: str
    second_id: str
    source: str | None = field(default=None, compare=False)
    """File and line of the trial."""


class VoxCeleb1Verification(Corpus):
    """VoxCeleb1: interviews of 1251 celebrities, with trials of pairs of utterances.

    SUPERB trains on all speakers except the 40 test speakers id10270 to id10309, whatever folder
    holds these; a folder of test speakers (`test/wav`) never trains. It trains without utterances
    of at most 2 s after trimming. Test is the 37 720 cleaned trials. Dev is 20 000 trials of 40
    training speakers: SUPERB's list if `dev_trials` is set to it (`dev_meta_data.txt` of s3prl),
    otherwise trials drawn by :func:`draw_trials`. The splits dev and test hold each utterance of
    their trials once; :meth:`trials` gives the trials.
    Labels: `speaker`.

    Args:
        file_path: the folder with the speakers' folders, in `dev/wav` and `test/wav` or elsewhere.
        test_trials: file of test trials (`veri_test2.txt`).
        dev_trials: file of dev trials, or None.
    """

    title: ClassVar[str] = "VoxCeleb1"
    task: ClassVar[str] = "sv"
    cacheable: ClassVar[bool] = True
    splits: tuple[str, ...] = ("train", "dev", "test")

    def __init__(
        self,
        *,
        file_path: str | os.PathLike[str],
        test_trials: str | os.PathLike[str],
        dev_trials: str | os.PathLike[str] | None = None,
    ) -> None:
        self.root = absolute(file_path)
        self.test_trials = absolute(test_trials)
        self.dev_trials = None if dev_trials is None else absolute(dev_trials)
        super().__init__(
            {
                "file_path": self.root,
                "test_trials": self.test_trials,
                "dev_trials": self.dev_trials,
            }
        )

    @listed_once
    def files(self) -> VoxCelebFiles:
        """The audio files."""
        return find_files(self.root)

    def problems(self) -> list[str]:
        problems = layout_problems(self, self.root)
        expected = "a list of trials (`<0|1> <wav> <wav>` a line)"
        problems += self.missing_file(self.test_trials, expected, "test_trials")
        if self.dev_trials is not None:
            problems += self.missing_file(self.dev_trials, expected, "dev_trials")
        return problems

    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split: by path (train), or by first appearance in the trials.

        Raises:
            UserError: as :meth:`Corpus.utterances`.
        """
        self.check_split(split)
        files = self.files
        if split == "train":
            return [
                Utterance(name, path, {"speaker": speaker_of(name)})
                for name, path in training_files(files).items()
            ]
        listed: dict[str, str | None] = {}
        for trial in self.trials(split):
            for name in (trial.first_id, trial.second_id):
                listed.setdefault(name, trial.source)
        return [
            Utterance(
                name,
                files.find(name) or missing_audio_path(files, self.root, name),
                {"speaker": speaker_of(name)},
                source=source,
            )
            for name, source in listed.items()
        ]

    def content_check(self, split: str) -> Callable[[Tensor], bool] | None:
        return long_enough_trimmed if split == "train" else None

    def label_space(self) -> dict[str, Any]:
        """The training speakers, sorted, including those with short utterances only.

        Raises:
            UserError: there are none.
        """
        names = training_files(self.files)
        if not names:
            raise UserError(
                "sv: no audio of a training speaker: the folders of VoxCeleb1 hold test speakers "
                "(id10270 to id10309) only, or are named as the test part.",
                where=", ".join(str(place.folder) for place in self.files.places),
                fix="Add the development part, such as in `dev/wav`.",
                code="corpus-empty",
            )
        return {"speakers": sorted({speaker_of(name) for name in names})}

    def findings(self, split: str) -> list[Finding]:
        """Folders and files that are not used; training files that the split file of `sid` lacks or
        has in addition; trials that contradict their names or repeat."""
        if split == self.splits[0]:
            return [*layout_findings(self, self.files), *self._list_findings()]
        return trial_findings(self.trials(split), split, speaker_of)

    def _list_findings(self) -> list[Finding]:
        """Differences between the training files and the list of all utterances, if it exists."""
        every = every_utterance(self.root)
        if every is None:
            return []
        path, listed = every
        listed = {name for name in listed if speaker_of(name) not in TEST_SPEAKERS}
        files = {audio_stem(name): file for name, file in training_files(self.files).items()}
        unlisted = [file for name, file in files.items() if name not in listed]
        absent = sorted(listed - files.keys())
        findings = []
        if unlisted:
            findings.append(
                Finding(
                    f"{len(unlisted)} of {len(files)} training files are not in {path.name}, which "
                    "lists all utterances of VoxCeleb1. They are used.",
                    where=str(unlisted[0]),
                    fix="Remove files that are not of the corpus, unless they are intended.",
                    code="corpus-malformed",
                )
            )
        if absent:
            findings.append(
                Finding(
                    f"{len(absent)} of {len(listed)} utterances of training speakers that "
                    f"{path.name} lists have no file.",
                    where=absent[0],
                    fix="Complete the corpus, unless this part of it is intended.",
                    code="corpus-incomplete",
                )
            )
        return findings

    def notes(self) -> list[str]:
        return self.files.notes()

    def official(self, split: str) -> Official | None:
        return PUBLISHED.get(split)

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        return speaker_of(utterance_id)

    def classes(self, labels: Mapping[str, Any]) -> list[str]:
        """None: speakers of the evaluated splits need no training utterance."""
        return []

    def may_share(self, first: str, second: str, labels: Mapping[str, Any]) -> bool:
        """Whether the splits are train and dev: the dev trials are of training utterances."""
        return {first, second} == {"train", "dev"}

    def shared_speakers(self, first: str, second: str) -> Literal["allowed", "warning", "error"]:
        return "error" if "test" in (first, second) else "allowed"

    def trials(self, split: str) -> list[Trial]:
        """The trials of dev or test.

        Raises:
            UserError: the split has no trials, or the file is malformed.
        """
        if split == "test":
            return read_trials(self.test_trials)
        if split != "dev":
            raise UserError(
                f"sv: the split {split!r} has no trials.",
                fix="Use dev or test.",
                code="unknown-name",
            )
        if self.dev_trials is not None:
            return read_trials(self.dev_trials)
        return draw_trials(list(training_files(self.files)))


def trial_findings(
    trials: Sequence[Trial], split: str, speaker: Callable[[str], str]
) -> list[Finding]:
    """Trials that contradict the speakers, repeat, or compare an utterance with itself.

    Args:
        trials: of the split.
        split: its name.
        speaker: of an utterance, by its id.
    """
    wrong = [t for t in trials if t.label != (speaker(t.first_id) == speaker(t.second_id))]
    pairs = Counter(frozenset((trial.first_id, trial.second_id)) for trial in trials)
    again = [t for t in trials if pairs[frozenset((t.first_id, t.second_id))] > 1]
    alone = [trial for trial in trials if trial.first_id == trial.second_id]
    cases = (
        (wrong, "have another label than their speakers", True),
        (again, "have the utterances of another trial", False),
        (alone, "compare an utterance with itself", False),
    )
    return [
        Finding(
            f"{len(found)} of {len(trials)} trials of split {split!r} {what}.",
            where=found[0].source or f"{found[0].first_id}, {found[0].second_id}",
            fix="Label 1 is for two utterances of one speaker, 0 for those of two speakers."
            if certain
            else "Keep one trial of each pair of utterances.",
            certain=certain,
        )
        for found, what, certain in cases
        if found
    ]


def training_files(files: VoxCelebFiles) -> dict[str, Path]:
    """SUPERB's rule: all speakers of the development part except the 40 test speakers."""
    return {
        name: path
        for name, path in files.training().items()
        if speaker_of(name) not in TEST_SPEAKERS
    }


def preprocess(waveform: Tensor) -> Tensor:
    """Apply SUPERB's effects: a gain of -3 dB, then removal of silence.

    Args:
        waveform: (samples,) at 16 kHz.

    Returns:
        Waveform (kept_samples,); empty if all of it is silence.
    """
    return trim_silence(apply_gain(waveform, GAIN_DECIBELS))


def long_enough_trimmed(waveform: Tensor) -> bool:
    """Whether more than 2 s of an utterance remain after trimming, SUPERB's minimum in training."""
    return preprocess(waveform).shape[0] > MINIMUM_TRIMMED_SAMPLES


def read_trials(path: Path) -> list[Trial]:
    """The trials of a file.

    Raises:
        UserError: a malformed line.
    """
    trials: list[Trial] = []
    for number, line in read_lines(path):
        fields = line.split()
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            raise UserError(
                f"sv: {line.strip()!r} is not a trial.",
                where=f"{path}, line {number}",
                fix="Each line is `<0|1> <speaker>/<video>/<number>.wav <...>.wav`.",
                code="corpus-malformed",
            )
        where = f"{path}, line {number}"
        names = [listed_name(field) for field in fields[1:]]
        check_speakers("sv", names, where)
        trials.append(Trial(int(fields[0]), names[0], names[1], where))
    return trials


def draw_trials(
    names: Sequence[str],
    trials: int = DEV_TRIALS,
    speakers: int = DEV_SPEAKERS,
    seed: int = DEV_SEED,
) -> list[Trial]:
    """Draw distinct trials of some speakers, half of them target trials (same speaker).

    Args:
        names: utterances to draw from.
        trials: number of trials; reduced, keeping the halves equal, if there are too few pairs.
        speakers: number of speakers to draw first; all if there are fewer.
        seed: seed of the draw.

    Raises:
        UserError: no two utterances have the same speaker, or there is only one speaker.
    """
    generator = random.Random(seed)
    everybody = sorted({speaker_of(name) for name in names})
    chosen = set(generator.sample(everybody, min(speakers, len(everybody))))
    by_speaker: dict[str, list[str]] = defaultdict(list)
    pool = sorted(name for name in names if speaker_of(name) in chosen)
    for name in pool:
        by_speaker[speaker_of(name)].append(name)

    same = [pair for group in by_speaker.values() for pair in combinations(group, 2)]
    different_count = len(pool) * (len(pool) - 1) // 2 - len(same)
    half = min(trials // 2, len(same), different_count)
    if half == 0:
        raise UserError(
            "sv: dev trials need two speakers, one of them with two utterances.",
            fix="Check the corpus, or name a file of trials in sv's `datarc.dev_trials`.",
            code="corpus-incomplete",
        )
    drawn = [Trial(1, *pair) for pair in generator.sample(same, half)]
    different: set[tuple[str, str]] = set()
    while len(different) < half:
        first, second = sorted(generator.sample(pool, 2))
        if speaker_of(first) != speaker_of(second) and (first, second) not in different:
            different.add((first, second))
            drawn.append(Trial(0, first, second))
    return drawn
