"""Faults of corpora as people have them, by kind: `docs/data.md` lists the kinds.

Each case changes a sound corpus, and names the code of the error or warning that has to follow, and
what its place has to contain.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from s3prl_mtl import load_task
from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.errors import UserError
from tests.downstream_plugins.test_layouts import FOLDERS, SMALL_HEADS, expert_of, rewrite

ERROR, WARNING = True, False


@dataclass(frozen=True)
class Case:
    """A fault.

    Args:
        task: whose corpus has it.
        change: makes it, in the data folder.
        code: of the error or warning.
        certain: an error; otherwise a warning, and no error.
        where: part of the message.
        settings: of `datarc`, from the data folder.
    """

    task: str
    change: Callable[[Path], object]
    code: str
    certain: bool
    where: str
    settings: Callable[[Path], Mapping[str, Any]] = field(default=lambda data: {})


def first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def quieter(source: Path, target: Path) -> None:
    """A copy with other samples."""
    samples, rate = soundfile.read(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(target, 0.5 * samples, rate)


def append(path: Path, *lines: str) -> None:
    path.write_text("\n".join([path.read_text().rstrip("\n"), *lines]) + "\n")


def lines_of(path: Path, keep: Callable[[str], bool]) -> None:
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines() if keep(line)))


# ------------------------------------------------- A: splits are compared with each other


def dev_is_train_at_another_level(data: Path) -> None:
    train, dev = (data / "LibriSpeech" / name for name in ("train-clean-100", "dev-clean"))
    shutil.rmtree(dev)
    shutil.copytree(train, dev)
    for path in dev.rglob("*.flac"):
        quieter(path, path)


def dev_recording_longer_than_a_chunk_trains(data: Path) -> None:
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, 25 * 16_000)
    for split in ("train", "dev"):
        folder, name = data / "Libri2Mix" / split, f"{split}long"
        soundfile.write(folder / "wav" / f"{name}.wav", samples, 16_000)
        append(folder / "wav.scp", f"{name} wav/{name}.wav")
        append(folder / "reco2dur", f"{name} 25")
        append(folder / "segments", f"{name}a {name} 1 2", f"{name}b {name} 1 3")
        append(folder / "utt2spk", f"{name}a a", f"{name}b b")


def session_1_is_session_2(data: Path) -> None:
    root = data / "IEMOCAP_full_release"
    shutil.rmtree(root / "Session1")
    shutil.copytree(root / "Session2", root / "Session1")
    for path in sorted((root / "Session1").rglob("*"), key=lambda path: -len(path.parts)):
        if path.suffix == ".txt":
            path.write_text(path.read_text().replace("Ses02", "Ses01"))
        path.rename(path.with_name(path.name.replace("Ses02", "Ses01")))


def valid_sentences_are_those_of_training(data: Path) -> None:
    snips = data / "SNIPS"
    trained = sorted((snips / "train").rglob("*.wav"))
    for source, target in zip(trained, sorted((snips / "valid").rglob("*.wav")), strict=False):
        shutil.copy(source, target)


def file_under_two_codes_and_formats(data: Path) -> None:
    path = data / "VoxCeleb1" / "iden_split.txt"
    name = path.read_text().split()[1]
    append(path, f"3 {Path(name).with_suffix('.flac')}")


SPLITS = [
    Case("asr", dev_is_train_at_another_level, "corpus-overlap", ERROR, "dev-clean"),
    Case("sd", dev_recording_longer_than_a_chunk_trains, "corpus-overlap", ERROR, "devlong"),
    Case("er", session_1_is_session_2, "corpus-overlap", ERROR, "Session1"),
    Case("sf", valid_sentences_are_those_of_training, "corpus-overlap", ERROR, "valid"),
    Case("sid", file_under_two_codes_and_formats, "corpus-overlap", ERROR, "id10001"),
    Case(
        *("pr", lambda data: None, "corpus-overlap", ERROR, "dev-clean"),
        lambda data: {"train": ["train-clean-100", "dev-clean"]},
    ),
    Case(
        *("sv", lambda data: None, "corpus-overlap", ERROR, "speaker id10270"),
        lambda data: {"dev_trials": str(data / "VoxCeleb1" / "veri_test2.txt")},
    ),
]


# ------------------------------------ B: metadata is compared with the audio and with itself


def trial_with_the_other_label(data: Path) -> None:
    path = data / "VoxCeleb1" / "veri_test2.txt"
    path.write_text("0" + path.read_text()[1:])  # the first trial is of one speaker


def trial_in_both_orders(data: Path) -> None:
    path = data / "VoxCeleb1" / "veri_test2.txt"
    label, one, other = path.read_text().split()[:3]
    append(path, f"{label} {other} {one}")


def trial_of_one_utterance(data: Path) -> None:
    path = data / "VoxCeleb1" / "veri_test2.txt"
    _, name, _ = path.read_text().split()[:3]
    append(path, f"1 {name} {name}")


def one_speaker_for_all_segments(data: Path) -> None:
    folder = data / "Libri2Mix" / "train"
    (folder / "spk2utt").unlink()
    names = [line.split()[0] for line in (folder / "utt2spk").read_text().splitlines()]
    (folder / "utt2spk").write_text("".join(f"{name} somebody\n" for name in names))


def speakers_of_two_tables(data: Path) -> None:
    rewrite([data / "Libri2Mix" / "dev" / "spk2utt"], lambda text: "X" + text)


def rttm_of_another_preparation(data: Path) -> None:
    lines = [line.split() for line in (data / "Libri2Mix/test/rttm").read_text().splitlines()]
    later = [[*line[:3], str(float(line[3]) + 1), *line[4:]] for line in lines]
    (data / "Libri2Mix/test/rttm").write_text("".join(f"{' '.join(line)}\n" for line in later))


def rttm_without_a_recording(data: Path) -> None:
    path = data / "Libri2Mix" / "dev" / "rttm"
    recording = path.read_text().split()[1]
    lines_of(path, lambda line: recording not in line)


def columns_sorted_separately(data: Path) -> None:
    path = data / "fluent_speech_commands_dataset" / "data" / "train_data.csv"
    rewrite([path], lambda text: text.replace(",fq8vNhANbc,", ",nKTqBYzMpF,"))


def row_twice_with_other_labels(data: Path) -> None:
    path = data / "fluent_speech_commands_dataset" / "data" / "test_data.csv"
    row = path.read_text().splitlines()[1].split(",")
    append(path, ",".join(["99", *row[1:4], "deactivate", "lights", "none"]))


def transcript_twice(data: Path) -> None:
    path = first(data, "LibriSpeech/train-clean-100/*/*/*.trans.txt")
    append(path, f"{path.read_text().split()[0]} ANOTHER TEXT")


def slot_twice(data: Path) -> None:
    append(data / "SNIPS" / "slots.txt", "artist")


def slots_without_the_first_line(data: Path) -> None:
    rewrite([data / "SNIPS" / "slots.txt"], lambda text: text.split("\n", 1)[1])


METADATA = [
    Case("sv", trial_with_the_other_label, "corpus-inconsistent", ERROR, "veri_test2.txt, line 1"),
    Case("sv", trial_in_both_orders, "corpus-inconsistent", WARNING, "veri_test2.txt, line 1"),
    Case("sv", trial_of_one_utterance, "corpus-inconsistent", WARNING, "veri_test2.txt, line 13"),
    Case("sd", one_speaker_for_all_segments, "corpus-inconsistent", ERROR, "somebody"),
    Case("sd", speakers_of_two_tables, "corpus-inconsistent", ERROR, "spk2utt"),
    Case("sd", rttm_of_another_preparation, "corpus-inconsistent", WARNING, "test/rttm"),
    Case("sd", rttm_without_a_recording, "corpus-inconsistent", WARNING, "dev/rttm"),
    Case("ic", columns_sorted_separately, "corpus-inconsistent", WARNING, "train_data.csv, line 2"),
    Case("ic", row_twice_with_other_labels, "corpus-malformed", ERROR, "AmFhA9Rmr0"),
    Case("asr", transcript_twice, "corpus-malformed", ERROR, "1682-101682-0000"),
    Case("sf", slot_twice, "corpus-malformed", ERROR, "slots.txt, lines 2 and"),
    Case("sf", slots_without_the_first_line, "corpus-malformed", ERROR, "slots.txt"),
]


# ------------------------------------- C: what lies in a folder is neither data nor a class


def augmented_copies_below_a_word(data: Path) -> None:
    folder = data / "speech_commands_v0.01" / "yes"
    for path in sorted(folder.glob("*.wav")):
        quieter(path, folder / "augmented" / f"slow_{path.name}")


def a_word_among_the_noise(data: Path) -> None:
    root = data / "speech_commands_v0.01"
    shutil.copy(first(root, "yes/*.wav"), root / "_background_noise_")


def sentence_of_test_among_training(data: Path) -> None:
    snips = data / "SNIPS"
    source = first(snips / "test", "**/*.wav")
    target = snips / "train" / f"Ivy-{source.name.split('-', 1)[1]}"
    quieter(source, target)


def another_set_within_train(data: Path) -> None:
    root = data / "LibriSpeech"
    shutil.move(root / "dev-other", root / "train-clean-100")


def copy_of_transcripts(data: Path) -> None:
    path = first(data, "LibriSpeech/train-clean-100/*/*/*.trans.txt")
    shutil.copy(path, path.with_name("copy.trans.txt"))


def augmented_copies_of_speakers(data: Path) -> None:
    for path in sorted((data / "VoxCeleb1" / "dev").rglob("*.wav"))[:3]:
        quieter(path, path.with_name(f"{path.stem}_noise.wav"))


def audio_that_no_list_names(data: Path) -> None:
    path = first(data, "VoxCeleb1/dev/wav/id10001/*/*.wav")
    quieter(path, path.with_name("00099.wav"))


def folder_that_is_not_a_speaker(data: Path) -> None:
    folder = data / "LibriSpeech" / "train-clean-100" / "notes" / "1"
    quieter(first(data, "LibriSpeech/dev-clean/*/*/*.flac"), folder / "notes-1-0000.flac")
    (folder / "notes-1.trans.txt").write_text("notes-1-0000 SOMETHING\n")


def audio_without_the_folder_of_a_video(data: Path) -> None:
    speaker = data / "VoxCeleb1" / "dev" / "wav" / "id10001"
    quieter(first(speaker, "*/*.wav"), speaker / "00009.wav")


FOLDER_CONTENTS = [
    Case("ks", augmented_copies_below_a_word, "corpus-malformed", WARNING, "yes/augmented"),
    Case("ks", a_word_among_the_noise, "corpus-malformed", ERROR, "_background_noise_/"),
    Case("sf", sentence_of_test_among_training, "corpus-malformed", WARNING, "Ivy-snips"),
    Case("asr", another_set_within_train, "corpus-malformed", ERROR, "train-clean-100/dev-other"),
    Case("pr", copy_of_transcripts, "corpus-malformed", ERROR, "1682-101682-0000"),
    Case("sv", augmented_copies_of_speakers, "corpus-malformed", WARNING, "_noise.wav"),
    Case("sv", audio_without_the_folder_of_a_video, "corpus-malformed", WARNING, "00009.wav"),
]
IGNORED = [case for case in FOLDER_CONTENTS if case.certain == WARNING]
FOLDER_CONTENTS += [
    Case("sv", audio_that_no_list_names, "corpus-malformed", WARNING, "00099.wav"),
    Case("asr", folder_that_is_not_a_speaker, "corpus-malformed", WARNING, "notes-1-0000"),
]
"""Also what is used, since it has a name of the corpus or a transcript."""


# ---------------------------------------------------- D: what is missing leaves a trace


def slot_of_the_evaluated_splits_only(data: Path) -> None:
    def without_artist(line: str) -> str:
        if "-train-" not in line:
            return line
        return line.replace(" artist", " O").replace("\tartist", "\tO")

    path = data / "SNIPS" / "all.iob.snips.txt"
    path.write_text("".join(f"{without_artist(s)}\n" for s in path.read_text().splitlines()))


def slot_of_no_utterance(data: Path) -> None:
    append(data / "SNIPS" / "slots.txt", "weather")


def class_folder_without_audio(data: Path) -> None:
    for path in (data / "speech_commands_test_set_v0.01" / "yes").iterdir():
        path.unlink()


def table_with_its_heading_only(data: Path) -> None:
    path = data / "fluent_speech_commands_dataset" / "data" / "valid_data.csv"
    rewrite([path], lambda text: text.split("\n", 1)[0])


def one_actor_of_a_session(data: Path) -> None:
    root = data / "IEMOCAP_full_release" / "Session1"
    for path in (root / "dialog" / "EmoEvaluation").glob("*.txt"):
        lines_of(path, lambda line: "_F0" not in line)
    for path in root.rglob("*_F0*.wav"):
        path.unlink()


def speaker_that_is_only_evaluated(data: Path) -> None:
    lines_of(data / "VoxCeleb1" / "iden_split.txt", lambda line: not line.startswith("1 id10002"))


def half_of_the_training_speakers(data: Path) -> None:
    for path in sorted((data / "VoxCeleb1" / "dev" / "wav").iterdir())[2:]:
        shutil.rmtree(path)


def dev_in_the_folder_of_test(data: Path) -> None:
    root = data / "VoxCeleb1"
    (root / "dev").rename(root / "moved")
    (root / "test").rename(root / "dev")
    (root / "moved").rename(root / "test")


def one_training_speaker(data: Path) -> None:
    for path in sorted((data / "VoxCeleb1" / "dev" / "wav").iterdir())[1:]:
        shutil.rmtree(path)


MISSING = [
    Case("sf", slot_of_the_evaluated_splits_only, "corpus-incomplete", ERROR, "slot artist"),
    Case("sf", slot_of_no_utterance, "corpus-incomplete", WARNING, "slot weather"),
    Case("ks", class_folder_without_audio, "corpus-incomplete", WARNING, "set_v0.01/yes"),
    Case("ic", table_with_its_heading_only, "corpus-empty", ERROR, "valid_data.csv"),
    Case("er", one_actor_of_a_session, "corpus-incomplete", WARNING, "Session1"),
    Case("sid", speaker_that_is_only_evaluated, "corpus-incomplete", ERROR, "class id10002"),
    Case(
        *("sv", half_of_the_training_speakers, "corpus-incomplete", WARNING, "8 of 16 utterances"),
        lambda data: {"dev_trials": None},
    ),
    Case("sv", dev_in_the_folder_of_test, "corpus-empty", ERROR, "VoxCeleb1/test/wav"),
    Case(
        *("sv", one_training_speaker, "corpus-incomplete", ERROR, "datarc.dev_trials"),
        lambda data: {"dev_trials": None},
    ),
]


# ------------------------------- E and F: what hides a fault, and what scoring needs


def digits_and_accents_in_commands(data: Path) -> None:
    path = data / "SNIPS" / "all.iob.snips.txt"
    rewrite([path], lambda text: text.replace("BOB DYLAN", "BJ\u00d6RK 2PAC"))


def accents_of_dev_only(data: Path) -> None:
    path = first(data, "LibriSpeech/dev-clean/*/*/*.trans.txt")
    rewrite([path], lambda text: text.replace("THE", "TH\u00c9"))


def audio_cut_to_a_sixth(data: Path) -> None:
    for path in (data / "LibriSpeech" / "train-clean-100").rglob("*.flac"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples[: len(samples) // 6], rate)


def short_audio_of_test(data: Path) -> None:
    for path in (data / "LibriSpeech" / "test-clean").rglob("*.flac"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples[: len(samples) // 6], rate)


HIDDEN = [
    Case("sf", digits_and_accents_in_commands, "label-unknown", WARNING, "Ivy-snips-train-0"),
    Case("asr", accents_of_dev_only, "label-unknown", WARNING, "2584-102584"),
    Case("pr", audio_cut_to_a_sixth, "targets-too-long", ERROR, "1682-101682"),
    Case("asr", short_audio_of_test, "targets-too-long", ERROR, "split 'test-clean'"),
]


def trials_of_one_kind(data: Path) -> None:
    lines_of(data / "VoxCeleb1" / "veri_test2.txt", lambda line: line.startswith("1"))


def segments_shorter_than_a_frame(data: Path) -> None:
    path = data / "Libri2Mix" / "test" / "segments"
    fields = [line.split() for line in path.read_text().splitlines()]
    path.write_text("".join(f"{u} {r} {s} {float(s) + 1e-4}\n" for u, r, s, _ in fields))


def split_file_without_a_code(data: Path) -> None:
    lines_of(data / "VoxCeleb1" / "iden_split.txt", lambda line: not line.startswith("3"))


def valid_split_of_other_speakers(data: Path) -> None:
    for path in (data / "SNIPS" / "valid").rglob("*.wav"):
        path.rename(path.with_name(f"Zoe-{path.name.split('-', 1)[1]}"))


def classes_without_audio(data: Path) -> None:
    for path in (data / "speech_commands_test_set_v0.01").rglob("*.wav"):
        path.unlink()


SCORING = [
    Case("sv", trials_of_one_kind, "undefined-metric", ERROR, "trials of split 'test'"),
    Case("sd", segments_shorter_than_a_frame, "undefined-metric", ERROR, "split 'test'"),
    Case("sid", split_file_without_a_code, "corpus-empty", ERROR, "iden_split.txt"),
    Case("sf", valid_split_of_other_speakers, "corpus-empty", ERROR, "Zoe-snips"),
    Case("ks", classes_without_audio, "corpus-empty", ERROR, "test_set_v0.01"),
]


# ---------------------------------------------- H: what is there instead of what is missing


def archive_that_is_not_unpacked(data: Path) -> None:
    shutil.rmtree(data / "LibriSpeech" / "dev-clean")
    (data / "LibriSpeech" / "dev-clean.tar.gz").write_bytes(b"")


def folder_within_its_own_name(data: Path) -> None:
    (data / "LibriSpeech").rename(data / "moved")
    (data / "LibriSpeech").mkdir()
    (data / "moved").rename(data / "LibriSpeech" / "LibriSpeech")


def folder_in_another_case(data: Path) -> None:
    (data / "Libri2Mix").rename(data / "libri2mix")


def packed_audio(data: Path) -> None:
    for path in (data / "fluent_speech_commands_dataset" / "wavs").rglob("*.wav"):
        path.rename(path.with_name(f"{path.name}.gz"))


def renamed(suffix: str) -> Callable[[Path], None]:
    def rename(data: Path) -> None:
        for path in (data / "Libri2Mix" / "train" / "wav").iterdir():
            path.rename(path.with_suffix(suffix))

    return rename


def speakers_in_another_case(data: Path) -> None:
    for path in (data / "VoxCeleb1" / "dev" / "wav").iterdir():
        if path.name == "id10001":
            path.rename(path.with_name("ID10001"))


def paths_of_another_machine(data: Path) -> None:
    path = data / "Libri2Mix" / "train" / "wav.scp"
    rewrite([path], lambda text: text.replace(" wav/", " /export/mix/"))
    shutil.rmtree(data / "Libri2Mix" / "train" / "wav")


def noise_as_tensors(data: Path) -> None:
    for path in (data / "speech_commands_v0.01" / "_background_noise_").iterdir():
        path.rename(path.with_suffix(".pt"))


def links_to_another_disk(data: Path) -> None:
    for path in (data / "VoxCeleb1" / "dev").rglob("*.wav"):
        path.unlink()
        path.symlink_to(f"/mnt/gone/{path.name}")


def written(content: bytes) -> Callable[[Path], None]:
    def replace_audio(data: Path) -> None:
        for path in (data / "LibriSpeech" / "dev-clean").rglob("*.flac"):
            path.write_bytes(content)

    return replace_audio


INSTEAD = [
    Case("asr", archive_that_is_not_unpacked, "layout", ERROR, "dev-clean.tar.gz does: unpack"),
    Case("pr", folder_within_its_own_name, "layout", ERROR, "LibriSpeech/LibriSpeech/dev-clean"),
    Case("sd", folder_in_another_case, "layout", ERROR, "has libri2mix"),
    Case("ic", packed_audio, "corpus-incomplete", ERROR, ".wav.gz (listed in"),
    Case("sd", renamed(".m4a"), "corpus-incomplete", ERROR, ".m4a files cannot be read"),
    Case("sd", renamed(".sph"), "corpus-incomplete", ERROR, ".sph (listed in"),
    Case("sd", renamed(".wav.bak"), "corpus-incomplete", ERROR, ".wav.bak (listed in"),
    Case("sid", speakers_in_another_case, "corpus-incomplete", ERROR, "id10001, but ID10001"),
    Case("sd", paths_of_another_machine, "corpus-incomplete", ERROR, "below "),
    Case("ks", noise_as_tensors, "layout", ERROR, "has no audio, but brown_noise.pt"),
    Case("sid", links_to_another_disk, "corpus-incomplete", ERROR, "a link to /mnt/gone/00001.wav"),
    Case("asr", written(b"<!DOCTYPE html>"), "corpus-incomplete", ERROR, "a web page"),
    Case("asr", written(b"PK\x03\x04"), "corpus-incomplete", ERROR, "a zip archive"),
    Case("asr", written(b"\0" * 2000), "corpus-incomplete", ERROR, "begins with zeros"),
    Case(
        *("asr", written(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")),
        *("corpus-incomplete", ERROR, "git lfs pull"),
    ),
]

CASES = {
    **{f"A-{number}": case for number, case in enumerate(SPLITS)},
    **{f"B-{number}": case for number, case in enumerate(METADATA)},
    **{f"C-{number}": case for number, case in enumerate(FOLDER_CONTENTS)},
    **{f"D-{number}": case for number, case in enumerate(MISSING)},
    **{f"E-{number}": case for number, case in enumerate(HIDDEN)},
    **{f"F-{number}": case for number, case in enumerate(SCORING)},
    **{f"H-{number}": case for number, case in enumerate(INSTEAD)},
}


def found(case: Case, data: Path, tmp_path: Path) -> list[tuple[str, bool, str]]:
    """The code of each error and warning of a corpus, whether it is an error, and its text."""
    settings = case.settings(data)
    flags = {
        "downstream": [case.task],
        "data": str(data),
        f"{case.task}.downstream_expert.datarc": dict(settings),
    }
    config = resolve(build_config(files=[SMALL_HEADS], flags=flags))
    problems = load_task(case.task).problems(config.tasks[case.task].downstream_expert)
    if problems:
        return [("layout", ERROR, problem) for problem in problems]
    mistakes = []
    try:
        expert = expert_of(case.task, data, tmp_path / "cache", tmp_path, **settings)
        splits = [expert.train_split, *expert.corpus.splits[1:]]
        for split in splits:
            expert.utterances(split)
        report = expert.report(splits)
        assert report is not None
        mistakes += [(f.code, f.certain, str(f)) for f in report.findings]
    except UserError as mistake:
        mistakes.append((mistake.code, ERROR, str(mistake)))
    return mistakes


@pytest.fixture
def copy(tiny_corpus: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies the corpus of a task into a data folder."""

    def copy(task: str) -> Path:
        for name in FOLDERS[task]:
            shutil.copytree(tiny_corpus / name, tmp_path / "data" / name)
        return tmp_path / "data"

    return copy


@pytest.mark.parametrize(
    "case", CASES.values(), ids=[f"{key}-{c.task}-{c.code}" for key, c in CASES.items()]
)
def test_a_fault_is_found(case: Case, copy: Callable[[str], Path], tmp_path: Path) -> None:
    data = copy(case.task)
    case.change(data)
    results = found(case, data, tmp_path)
    matching = [result for result in results if case.where in result[2]]
    assert (case.code, case.certain) in [result[:2] for result in matching], results
    if not case.certain:
        assert not any(certain for _, certain, _ in results), results


@pytest.mark.parametrize("case", IGNORED, ids=[case.change.__name__ for case in IGNORED])
def test_files_of_another_form_are_not_used(
    case: Case, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    data = copy(case.task)

    def utterances() -> list[str]:
        corpus = expert_of(case.task, data, tmp_path / "cache", tmp_path).corpus
        return [utterance.id for split in corpus.splits for utterance in corpus.utterances(split)]

    before = utterances()
    case.change(data)
    assert utterances() == before


@pytest.mark.parametrize("task", FOLDERS)
def test_a_sound_corpus_has_no_findings(
    task: str, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    case = Case(task, lambda data: None, "", ERROR, "")
    assert found(case, copy(task), tmp_path) == []
