"""`s3prl-mtl cluster`: files, other splits, interruptions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from s3prl_mtl import load_upstream
from s3prl_mtl.cli.main import command_parser
from s3prl_mtl.clustering.features import HiddenLayer, Mfcc
from s3prl_mtl.clustering.kmeans import read_centers
from s3prl_mtl.data import read_audio
from s3prl_mtl.data.unit_labels import read_dictionary, read_tsv, read_unit_labels
from s3prl_mtl.upstreams import write_fairseq_checkpoint
from tests.mistakes import user_error


def cluster(*words: object) -> None:
    arguments = command_parser("cluster").parse_args([str(word) for word in words])
    arguments.action(arguments)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """Six files of 0.3 to 1.3 s; one of them at 8 kHz, one too short for a frame."""
    folder = tmp_path / "audio"
    (folder / "b c").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(6):
        noise = random.normal(size=4_800 + 3_000 * number)
        noise = np.convolve(noise, np.ones(1 + 2 * number) / 20, "same")
        rate = 8_000 if number == 2 else 16_000
        soundfile.write(folder / ("b c" if number % 2 else "") / f"{number}.wav", noise, rate)
    soundfile.write(folder / "short.wav", np.ones(300) / 3, 16_000)
    return folder


def test_labels_are_the_nearest_centres(audio: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    cluster(out, "--audio", audio, "--clusters", 5)
    assert {path.name for path in out.iterdir()} == {
        "train.tsv",
        "train.km",
        "dict.km.txt",
        "centers.npz",
    }
    read = read_unit_labels(out / "train.tsv", out / "train.km", classes=list("01234"))
    assert read.label_rate == 100.0
    assert [name for name, _ in read.files] == [
        *("0.wav", "2.wav", "4.wav"),
        *("b c/1.wav", "b c/3.wav", "b c/5.wav"),
    ]
    assert dict(read.files)["2.wav"] == 2 * (4_800 + 6_000)
    centers = read_centers(out / "centers.npz").centers
    features = Mfcc()
    for (name, _), labels in zip(read.files, read.labels, strict=True):
        (found,) = features([read_audio(read.root / name)])
        distances = ((found[:, None] - centers[None]) ** 2).sum(axis=2)
        np.testing.assert_array_equal(labels, distances.argmin(axis=1))
    counts = np.bincount(np.concatenate(read.labels), minlength=5)
    lines = [f"{number} {count}\n" for number, count in enumerate(counts)]
    assert (out / "dict.km.txt").read_text() == "".join(lines)


def test_a_seed_gives_the_same_files(audio: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        flags = ["--clusters", 5, "--seed", 3, "--fraction", 0.7]
        cluster(tmp_path / name, "--audio", audio, *flags)
    for path in (tmp_path / "a").iterdir():
        assert (
            path.suffix == ".npz" or path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        )
    one, other = (read_centers(tmp_path / name / "centers.npz") for name in ("a", "b"))
    np.testing.assert_array_equal(one.centers, other.centers)
    assert one.settings == other.settings
    assert one.settings["fraction"] == 0.7


def test_hidden_states_of_a_layer(audio: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    flags = ["--features", "layer:2", "-u", "hubert_tiny", "--device", "cpu"]
    cluster(out, "--audio", audio, "--clusters", 4, *flags)
    read = read_unit_labels(out / "train.tsv", out / "train.km", classes=list("0123"))
    assert read.label_rate == 50.0
    centers = read_centers(out / "centers.npz")
    (states,) = HiddenLayer(load_upstream("hubert_tiny"), 2)([read_audio(audio / "4.wav")])
    np.testing.assert_array_equal(read.labels[2], centers.assign(states))


def test_another_split_has_the_same_clusters(audio: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    flags = ["--features", "layer:1", "-u", "hubert_tiny", "--clusters", 4, "--device", "cpu"]
    cluster(out, "--audio", audio, *flags)
    dictionary = (out / "dict.km.txt").read_bytes()
    tsv = tmp_path / "few.tsv"
    tsv.write_text("audio\nb c/3.wav\t13800\n4.wav\t16800\n")
    # Features and encoder are those of the centres.
    cluster(out, "--audio", tsv, "--centers", out / "centers.npz", "--split", "dev")
    train = read_unit_labels(out / "train.tsv", out / "train.km")
    dev = read_unit_labels(out / "dev.tsv", out / "dev.km")
    assert dev.root == audio
    assert [name for name, _ in dev.files] == ["b c/3.wav", "4.wav"]
    np.testing.assert_array_equal(dev.labels[0], train.labels[4])
    np.testing.assert_array_equal(dev.labels[1], train.labels[2])
    assert (out / "dict.km.txt").read_bytes() == dictionary


def test_refuses_centres_of_another_encoder(audio: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    flags = ["--clusters", 4, "--device", "cpu"]
    cluster(out, "--audio", audio, "--features", "layer:1", "-u", "hubert_tiny", *flags)
    other = load_upstream("hubert_tiny")
    with torch.no_grad():
        other.layer_norm.weight *= 1.1
    write_fairseq_checkpoint(tmp_path / "other.pt", other)
    same = ["--audio", audio, "--centers", out / "centers.npz", "--split", "dev"]
    with user_error("checkpoint-mismatch", "centers.npz"):
        cluster(out, *same, "-u", "hubert", "-k", tmp_path / "other.pt")
    with user_error("checkpoint-mismatch", "centers.npz"):
        cluster(out, *same, "--features", "mfcc")
    with user_error("checkpoint-mismatch", "centers.npz"):
        cluster(out, *same, "--features", "layer:2", "-u", "hubert_tiny")
    assert not (out / "dev.km").exists()


def test_the_training_audio_of_tasks(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    data = tiny_corpus
    out, flags = tmp_path / "labels", ["--data", data, "--cache_dir", manifest_cache]
    # asr and pr have the same audio.
    cluster(out, "-d", "asr,pr,ks", *flags, "--clusters", 5)
    root, files = read_tsv(out / "train.tsv")
    assert root == data
    paths = [name for name, _ in files]
    assert paths == sorted(set(paths))
    libri = {p.relative_to(data).as_posix() for p in data.glob("LibriSpeech/train-*/*/*/*.flac")}
    assert {path for path in paths if path.startswith("LibriSpeech")} == libri
    assert {path.split("/")[0] for path in paths} == {"LibriSpeech", "speech_commands_v0.01"}
    read_unit_labels(out / "train.tsv", out / "train.km", classes=list("01234"))


def test_an_interruption_leaves_no_labels(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "labels"
    # The header of the last file is complete, its samples are not.
    path = audio / "z.flac"
    soundfile.write(path, np.random.default_rng(0).normal(size=16_000) / 9, 16_000)
    path.write_bytes(path.read_bytes()[:-9_000])
    cluster(tmp_path / "first", "--audio", audio / "b c", "--clusters", 4)
    with user_error("audio-unreadable", "z.flac"):
        cluster(out, "--audio", audio, "--centers", tmp_path / "first" / "centers.npz")
    assert [path.name for path in out.iterdir()] == ["centers.npz"]


def test_a_killed_command_is_continued_with_its_centres(audio: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "labels"
    cluster(whole, "--audio", audio, "--clusters", 4)
    out.mkdir()
    shutil.copy(whole / "centers.npz", out)
    (out / ".partial-123-train.km").write_text("1 2\n3")
    with user_error("file-exists", "labels", fix=r"--centers \S+/labels/centers\.npz"):
        cluster(out, "--audio", audio, "--clusters", 4)
    cluster(out, "--audio", audio, "--centers", out / "centers.npz")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_refuses_to_overwrite(audio: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    cluster(out, "--audio", audio, "--clusters", 4)
    with user_error("file-exists", "labels"):
        cluster(out, "--audio", audio, "--clusters", 4)
    with user_error("file-exists", "labels"):
        cluster(out, "--audio", audio, "--centers", out / "centers.npz")
    cluster(tmp_path / "more", "--audio", audio, "--clusters", 5)
    (out / "centers.npz").unlink()
    with user_error("conflicting-options", "dict.km.txt"):
        same = ["--centers", tmp_path / "more" / "centers.npz"]
        cluster(out, "--audio", audio, *same, "--split", "dev")


def test_refuses_other_centres_than_those_of_the_labels(audio: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "labels", tmp_path / "other"
    cluster(out, "--audio", audio, "--clusters", 4)
    cluster(other, "--audio", audio / "b c", "--clusters", 4)
    with user_error("conflicting-options", r"other/centers\.npz.*labels/centers\.npz"):
        cluster(out, "--audio", audio, "--split", "dev", "--centers", other / "centers.npz")
    assert not (out / "dev.km").exists()
    # Labels by centres from elsewhere have them, too.
    third = tmp_path / "third"
    cluster(third, "--audio", audio, "--split", "dev", "--centers", other / "centers.npz")
    assert (third / "centers.npz").exists()
    with user_error("conflicting-options", r"labels/centers\.npz.*third/centers\.npz"):
        cluster(third, "--audio", audio, "--centers", out / "centers.npz")


@pytest.mark.parametrize(
    ("code", "where", "words"),
    [
        ("invalid-value", "--clusters 0", ["--clusters", "0"]),
        ("invalid-value", "--fraction 1.5", ["--fraction", "1.5"]),
        ("invalid-value", "--memory 0", ["--memory", "0"]),
        ("invalid-value", "--features fbank", ["--features", "fbank"]),
        ("invalid-value", "--clusters 9999", ["--clusters", "9999"]),
        ("invalid-name", "--split a/b", ["--split", "a/b"]),
        ("missing-option", "--features layer:1", ["--features", "layer:1"]),
        ("conflicting-options", "-u", ["-u", "hubert_tiny"]),
        ("file-missing", "--centers", ["--centers", "no.npz"]),
    ],
)
def test_refuses_wrong_flags(
    audio: Path, tmp_path: Path, code: str, where: str, words: list[str]
) -> None:
    with user_error(code, where):
        cluster(tmp_path / "labels", "--audio", audio, *words)
    assert not (tmp_path / "labels").exists()


def test_refuses_audio_that_is_not_there(tmp_path: Path) -> None:
    with user_error("file-missing", "--audio"):
        cluster(tmp_path / "labels", "--audio", tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with user_error("corpus-empty", "--audio"):
        cluster(tmp_path / "labels", "--audio", tmp_path / "empty")
    with user_error("invalid-value"):
        cluster(tmp_path / "labels")


def test_the_dictionary_is_that_of_fairseq(audio: Path, tmp_path: Path) -> None:
    cluster(tmp_path / "labels", "--audio", audio, "--clusters", 12)
    names = read_dictionary(tmp_path / "labels" / "dict.km.txt")
    assert names == [str(number) for number in range(12)]
