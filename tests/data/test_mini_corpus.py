"""The mini corpus: reproducible bytes, audible files, consistent metadata."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_mtl.data.mini_corpus import make_corpus
from s3prl_mtl.data.mini_corpus.espeak import ESPEAK_RATE
from s3prl_mtl.data.mini_corpus.rendering import scaled_tract
from tests.mistakes import user_error

# The 71 symbols that SUPERB's phone recognition knows, less SIL and SPN.
VOWELS = {"AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"}
PLOSIVES = {"B", "CH", "D", "G", "JH", "K", "P", "T"}
FRICATIVES = {"DH", "F", "HH", "S", "SH", "TH", "V", "Z", "ZH"}
SONORANTS = {"L", "M", "N", "NG", "R", "W", "Y"}
PHONES = (
    {vowel + stress for vowel in VOWELS for stress in "012"} | PLOSIVES | FRICATIVES | SONORANTS
)

KEYWORDS = {"yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"}
SNIPS_SPEAKERS = {
    "train": {"Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"},
    "valid": {"Aditi", "Amy", "Geraint", "Nicole"},
    "test": {"Brian", "Emma", "Raveena", "Russell"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / "corpus"
    make_corpus(folder, size="tiny", seed=0, jobs=2)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def audio_files(folder: Path, pattern: str = "*") -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob(pattern)
        if path.suffix in (".wav", ".flac")
    }


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def transcripts(librispeech: Path) -> Iterator[tuple[str, list[str]]]:
    """(path of the audio file relative to LibriSpeech, words) of every transcript line."""
    for path in librispeech.rglob("*.trans.txt"):
        for line in lines(path):
            utterance, *words = line.split()
            audio = path.parent / f"{utterance}.flac"
            yield audio.relative_to(librispeech).as_posix(), words


@pytest.mark.slow
def test_another_seed_gives_another_corpus_of_the_same_size(corpus: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path / "other", size="tiny", seed=1, jobs=2)
    ours, theirs = digests(corpus), digests(tmp_path / "other")
    assert len(ours) == len(theirs)
    assert {path.split("/")[0] for path in ours} == {path.split("/")[0] for path in theirs}
    audio = {digest for path, digest in ours.items() if path.endswith((".wav", ".flac"))}
    assert audio.isdisjoint(theirs.values())


def test_tiny_is_small(corpus: Path) -> None:
    assert sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file()) < 15e6


def test_audio_is_16_khz_and_neither_silent_nor_clipped(corpus: Path) -> None:
    paths = audio_files(corpus)
    assert len(paths) > 200
    for path in paths:
        layout = soundfile.info(corpus / path)
        assert (layout.samplerate, layout.channels, layout.subtype) == (16_000, 1, "PCM_16"), path
        waveform, _ = soundfile.read(corpus / path)
        assert np.isfinite(waveform).all(), path
        assert 0.01 < np.abs(waveform).max() < 0.99, path
        assert 0.5 <= layout.duration <= 10.0, path


def test_speech_is_louder_than_the_noise(corpus: Path) -> None:
    for path in audio_files(corpus):
        if "_silence_" in path or "_background_noise_" in path:
            continue
        waveform, _ = soundfile.read(corpus / path)
        frames = waveform[: len(waveform) // 400 * 400].reshape(-1, 400)
        loudness = np.sort(10 * np.log10(np.mean(frames**2, axis=1)))
        assert loudness[-len(loudness) // 10] - loudness[0] > 12, path


@pytest.mark.parametrize("scale", [0.9, 0.9524, 0.97, 0.9977, 1.0, 1.02, 1.1])
def test_a_scaled_vocal_tract_scales_frequencies_and_keeps_their_level(scale: float) -> None:
    hertz = 3000.0
    tone = np.sin(2 * np.pi * hertz * np.arange(ESPEAK_RATE) / ESPEAK_RATE)
    scaled = scaled_tract(tone, scale)
    spectrum = np.abs(np.fft.rfft(scaled * np.hanning(len(scaled))))
    assert np.argmax(spectrum) * 16_000 / len(scaled) == pytest.approx(hertz * scale, rel=1e-2)
    assert np.sqrt(np.mean(scaled**2)) == pytest.approx(np.sqrt(0.5), rel=0.02)


def test_librispeech_transcripts_match_the_audio(corpus: Path) -> None:
    root = corpus / "LibriSpeech"
    found = dict(transcripts(root))
    assert set(found) == audio_files(root)
    subsets = Counter(path.split("/")[0] for path in found)
    assert set(subsets) == {"train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other"}
    for path, words in found.items():
        subset, speaker, chapter, name = path.split("/")
        assert re.fullmatch(rf"{speaker}-{chapter}-\d{{4}}\.flac", name)
        assert all(re.fullmatch(r"[A-Z']+", word) for word in words)
        assert f"{speaker} {subset}" in {
            " ".join(row.split("|")[column].strip() for column in (0, 2))
            for row in lines(root / "SPEAKERS.TXT")
            if not row.startswith(";")
        }


def test_librispeech_speakers_and_sentences_are_in_one_subset_only(corpus: Path) -> None:
    speakers: dict[str, set[str]] = {}
    sentences: Counter[str] = Counter()
    for path, words in transcripts(corpus / "LibriSpeech"):
        subset, speaker, *_ = path.split("/")
        speakers.setdefault(speaker, set()).add(subset)
        sentences[" ".join(words)] += 1
    assert all(len(subsets) == 1 for subsets in speakers.values())
    assert set(sentences.values()) == {1}


def test_lexicon_holds_every_word_in_arpabet_with_stress(corpus: Path) -> None:
    root = corpus / "LibriSpeech"
    lexicon = dict(line.split("\t") for line in lines(root / "librispeech-lexicon.txt"))
    assert {word for _, words in transcripts(root) for word in words} <= set(lexicon)
    assert {phone for phones in lexicon.values() for phone in phones.split()} <= PHONES
    assert 40 <= len(lexicon) <= 60


def test_speech_commands_split_by_hash_as_its_lists_say(corpus: Path) -> None:
    root = corpus / "speech_commands_v0.01"
    parts: dict[str, set[str]] = {"train": set(), "validation": set(), "testing": set()}
    for path in audio_files(root) - audio_files(root, "_background_noise_/*"):
        speaker = re.sub(r"_nohash_.*$", "", path.split("/")[1])
        assert re.fullmatch(r"[0-9a-f]{8}", speaker)
        percent = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % 2**27 * (100 / (2**27 - 1))
        part = "validation" if percent < 10 else "testing" if percent < 20 else "train"
        parts[part].add(path)
    assert set(lines(root / "validation_list.txt")) == parts["validation"]
    assert set(lines(root / "testing_list.txt")) == parts["testing"]
    for paths in parts.values():
        assert {path.split("/")[0] for path in paths} > KEYWORDS


def test_speech_commands_has_noise_to_cut_silence_from_and_its_test_set(corpus: Path) -> None:
    noises = list((corpus / "speech_commands_v0.01" / "_background_noise_").glob("*.wav"))
    assert len(noises) == 6
    assert all(soundfile.info(path).duration >= 10 for path in noises)
    test_set = corpus / "speech_commands_test_set_v0.01"
    assert {path.name for path in test_set.iterdir()} == KEYWORDS | {"_unknown_", "_silence_"}
    words = audio_files(corpus / "speech_commands_v0.01", "*_nohash_*")
    for path in {f"speech_commands_v0.01/{path}" for path in words} | {
        f"speech_commands_test_set_v0.01/{path}" for path in audio_files(test_set)
    }:
        assert soundfile.info(corpus / path).frames == 16_000


def test_fluent_speech_commands_tables_match_the_audio(corpus: Path) -> None:
    root = corpus / "fluent_speech_commands_dataset"
    paths: list[str] = []
    speakers: dict[str, set[str]] = {}
    intents: dict[str, set[tuple[str, ...]]] = {}
    for split in ("train", "valid", "test"):
        with (root / "data" / f"{split}_data.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                assert row["path"].split("/")[:3] == ["wavs", "speakers", row["speakerId"]]
                paths.append(row["path"])
                speakers.setdefault(split, set()).add(row["speakerId"])
                intents.setdefault(split, set()).add(
                    tuple(row[slot] for slot in ("action", "object", "location"))
                )
    assert Counter(paths) == Counter(audio_files(root))
    assert intents["valid"] | intents["test"] <= intents["train"]
    assert len(intents["train"]) >= 12
    with (root / "data" / "speaker_demographics.csv").open(newline="") as file:
        people = [row["speakerId"] for row in csv.DictReader(file)]
    assert Counter(people) == Counter(name for names in speakers.values() for name in names)


def test_voxceleb_lists_name_the_audio(corpus: Path) -> None:
    root = corpus / "VoxCeleb1"
    folders = {part: audio_files(root / part / "wav") for part in ("dev", "test")}
    split = [line.split() for line in lines(root / "iden_split.txt")]
    assert Counter(path for _, path in split) == Counter(folders["dev"] | folders["test"])
    codes: dict[str, set[str]] = {}
    for code, path in split:
        codes.setdefault(path.split("/")[0], set()).add(code)
    assert all(found == {"1", "2", "3"} for found in codes.values())
    tested = {path.split("/")[0] for path in folders["test"]}
    assert all(10270 <= int(speaker[2:]) <= 10309 for speaker in tested)
    assert tested.isdisjoint(path.split("/")[0] for path in folders["dev"])


def test_voxceleb_trials_are_right_and_of_the_speakers_of_their_part(corpus: Path) -> None:
    root = corpus / "VoxCeleb1"
    for name in ("veri_test.txt", "veri_test2.txt", "veri_dev.txt"):
        files = audio_files(root / ("dev" if name == "veri_dev.txt" else "test") / "wav")
        trials = [line.split() for line in lines(root / name)]
        assert len(trials) == len({tuple(trial) for trial in trials})
        labels = Counter(label for label, _, _ in trials)
        assert labels["0"] == labels["1"] > 0
        for label, one, two in trials:
            assert {one, two} <= files
            assert one != two
            assert (one.split("/")[0] == two.split("/")[0]) == (label == "1")


def test_voxceleb_clips_are_long_enough_for_verification(corpus: Path) -> None:
    for path in (corpus / "VoxCeleb1").rglob("*.wav"):
        assert soundfile.info(path).duration > 2.1


def test_iemocap_annotations_match_the_audio(corpus: Path) -> None:
    root = corpus / "IEMOCAP_full_release"
    line_format = re.compile(
        r"\[(\d+\.\d{4}) - (\d+\.\d{4})\]\t(\w+)\t(\w{3})\t\[\d\.\d{4}, \d\.\d{4}, \d\.\d{4}\]"
    )
    for session in range(1, 6):
        folder = root / f"Session{session}"
        turns: dict[str, str] = {}
        for path in (folder / "dialog" / "EmoEvaluation").glob("*.txt"):
            header, *rest = lines(path)
            assert header == "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"
            for line in rest:
                if not line.startswith("["):
                    assert line == "" or line.startswith(("C-", "A-"))
                    continue
                match = line_format.fullmatch(line)
                assert match, line
                start, end, turn, emotion = match.groups()
                turns[f"{path.stem}/{turn}.wav"] = emotion
                layout = soundfile.info(folder / "sentences" / "wav" / path.stem / f"{turn}.wav")
                assert float(end) - float(start) == pytest.approx(layout.duration, abs=2e-4)
        assert set(turns) == audio_files(folder / "sentences" / "wav")
        assert {"neu", "hap", "ang", "sad"} <= set(turns.values())
        actors = {turn.split("_")[-1][0] for turn in turns}
        assert all(turn.startswith(f"Ses{session:02d}") for turn in turns)
        assert len({turn[-8] for turn in turns}) == len(actors) == 2


def test_snips_lies_on_disk_as_s3prl_prepares_it(corpus: Path) -> None:
    root = corpus / "SNIPS"
    assert not (root / "slots.txt").read_text().endswith("\n")
    assert {path.parent for path in root.rglob("*.wav")} == {
        root / split for split in ("train", "valid", "test")
    }


def test_snips_transcripts_match_the_audio(corpus: Path) -> None:
    root = corpus / "SNIPS"
    none, *slots = lines(root / "slots.txt")
    assert none == "O"
    named: dict[str, str] = {}
    for line in lines(root / "all.iob.snips.txt"):
        head, tail = line.split("\t")
        utterance, *words = head.split(" ")
        *labels, intent = tail.split(" ")
        assert (words[0], words[-1], labels[0]) == ("BOS", "EOS", "O")
        assert len(words) == len(labels) + 1  # the intent stands where EOS does
        assert set(labels) <= {"O", *slots}
        assert set(labels) != {"O"}
        assert all(re.fullmatch(r"[A-Z]+", word) for word in words)
        assert intent not in slots
        _speaker, snips, split, _number = utterance.split("-")
        assert snips == "snips"
        assert utterance not in named
        named[utterance] = f"{split}/{utterance}.wav"
    assert set(named.values()) == audio_files(root)
    for split, speakers in SNIPS_SPEAKERS.items():
        names = [
            path.removeprefix(f"{split}/") for path in named.values() if path.startswith(split)
        ]
        found = {name.split("-")[0] for name in names}
        assert speakers < found  # and somebody whom SUPERB's rule leaves out


def test_libri2mix_kaldi_files_agree_with_each_other_and_the_audio(corpus: Path) -> None:
    for split in ("train", "dev", "test"):
        folder = corpus / "Libri2Mix" / split
        wav_scp = dict(line.split() for line in lines(folder / "wav.scp"))
        durations = {k: float(v) for k, v in (x.split() for x in lines(folder / "reco2dur"))}
        utt2spk = dict(line.split() for line in lines(folder / "utt2spk"))
        segments = {
            utterance: (name, float(start), float(end))
            for utterance, name, start, end in map(str.split, lines(folder / "segments"))
        }
        rttm = [line.split() for line in lines(folder / "rttm")]
        spk2utt = {
            speaker: set(utts) for speaker, *utts in map(str.split, lines(folder / "spk2utt"))
        }

        assert {f"wav/{name}" for name in audio_files(folder / "wav")} == set(wav_scp.values())
        assert set(wav_scp) == set(durations)
        for name, path in wav_scp.items():
            assert soundfile.info(folder / path).duration == pytest.approx(
                durations[name], abs=1e-3
            )
        assert set(segments) == set(utt2spk)
        assert {u for utts in spk2utt.values() for u in utts} == set(utt2spk)
        assert all(utt2spk[u] == speaker for speaker, utts in spk2utt.items() for u in utts)
        turns = Counter(
            (row[1], round(float(row[3]), 3), round(float(row[3]) + float(row[4]), 3), row[7])
            for row in rttm
        )
        assert turns == Counter(
            (recording, round(start, 3), round(end, 3), utt2spk[utterance])
            for utterance, (recording, start, end) in segments.items()
        )
        assert all(0 <= start < end <= durations[name] for name, start, end in segments.values())
        for name in wav_scp:
            assert len({spk for recording, _, _, spk in turns if recording == name}) == 2


def test_libri2mix_turns_match_the_sound_and_some_overlap(corpus: Path) -> None:
    overlapped = 0.0
    for folder in (corpus / "Libri2Mix").iterdir():
        activity: dict[str, np.ndarray] = {}
        waveforms = {p.stem: soundfile.read(p)[0] for p in (folder / "wav").glob("*.wav")}
        for row in (line.split() for line in lines(folder / "rttm")):
            voices = activity.setdefault(row[1], np.zeros(len(waveforms[row[1]])))
            start, length = (round(float(row[column]) * 16_000) for column in (3, 4))
            voices[start : start + length] += 1
        for name, voices in activity.items():
            energy = waveforms[name] ** 2
            assert energy[voices > 0].mean() > 100 * energy[voices == 0].mean()
            assert (voices == 0).any()
            overlapped += (voices == 2).mean()
    assert overlapped > 0


def test_an_existing_corpus_is_not_changed(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    make_corpus(corpus, size="tiny", seed=0)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_another_corpus_in_the_folder_is_an_error_and_is_kept(corpus: Path) -> None:
    before = digests(corpus)
    with user_error("file-exists", where=f"^{re.escape(str(corpus))}.*size tiny, seed 0"):
        make_corpus(corpus, size="tiny", seed=5)
    assert digests(corpus) == before


def test_other_files_in_the_folder_are_an_error_and_are_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with user_error("file-exists", where=re.escape(str(tmp_path))):
        make_corpus(tmp_path, size="tiny")
    assert digests(tmp_path).keys() == {"thesis.tex"}


def test_a_partial_folder_with_other_files_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "corpus.partial").mkdir()
    (tmp_path / "corpus.partial" / "thesis.tex").write_text("mine")
    with user_error("file-exists", where=r"corpus\.partial"):
        make_corpus(tmp_path / "corpus", size="tiny")
    assert (tmp_path / "corpus.partial" / "thesis.tex").read_text() == "mine"


class Interruption(Exception):
    pass


@pytest.mark.slow
def test_after_an_interruption_another_number_of_workers_makes_the_same_bytes(
    corpus: Path, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total // 3:
            raise Interruption

    with pytest.raises(Interruption):
        make_corpus(tmp_path / "corpus", size="tiny", seed=0, jobs=2, progress=interrupt)
    assert not (tmp_path / "corpus").exists()
    assert (tmp_path / "corpus.partial").exists()

    # One worker renders in another order than two; the bytes must not depend on it.
    heard: list[tuple[int, int]] = []
    make_corpus(
        tmp_path / "corpus", size="tiny", seed=0, jobs=1, progress=lambda *at: heard.append(at)
    )
    total = len(audio_files(corpus))
    assert heard == [(done, total) for done in range(1, total + 1)]
    assert digests(tmp_path / "corpus") == digests(corpus)
    assert not (tmp_path / "corpus.partial").exists()


def test_the_identity_file_holds_size_and_seed(corpus: Path) -> None:
    identity = json.loads((corpus / "mini_corpus.json").read_text())
    assert (identity["size"], identity["seed"]) == ("tiny", 0)


def test_a_missing_synthesiser_is_an_error_with_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with user_error("missing-package", fix=r"s3prl-mtl\[demo\]"):
        make_corpus(tmp_path / "corpus", size="tiny")
    assert list(tmp_path.iterdir()) == []


def test_unknown_size_and_negative_seed_are_errors(tmp_path: Path) -> None:
    with user_error("unknown-name", where="size", fix="'mini'"):
        make_corpus(tmp_path / "corpus", size="minni")  # type: ignore[arg-type]
    with user_error("invalid-value", where="seed -1"):
        make_corpus(tmp_path / "corpus", seed=-1)


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with user_error("file-unwritable", where="file/corpus"):
        make_corpus(tmp_path / "file" / "corpus", size="tiny")
