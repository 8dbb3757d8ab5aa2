"""fairseq's files of frame labels: reading, writing, and pairs that do not belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_mtl.data.unit_labels import (
    check_audio,
    read_dictionary,
    read_km,
    read_tsv,
    read_unit_labels,
    samples_at_16k,
    write_dictionary,
    write_km,
    write_tsv,
)
from tests.mistakes import user_error


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """As fairseq writes them: 1 s and 0.5 s at 50 labels per second."""
    tsv, km = tmp_path / "train.tsv", tmp_path / "train.km"
    tsv.write_text("/corpus\na b/1.wav\t16000\n2.wav\t8000\n")
    km.write_text(" ".join(["3"] * 49) + "\n" + " ".join(["0", "17"] * 12) + "\n")
    return tsv, km


def test_reads_the_files_of_fairseq(pair: tuple[Path, Path]) -> None:
    read = read_unit_labels(*pair)
    assert read.root == Path("/corpus")
    assert read.files == [("a b/1.wav", 16_000), ("2.wav", 8_000)]
    assert [line.tolist() for line in read.labels] == [[3] * 49, [0, 17] * 12]
    assert read.labels[0].dtype == np.int32
    assert read.label_rate == 50.0


@pytest.mark.parametrize("rate", [100, 50, 25])
def test_finds_the_rate_by_the_counts(tmp_path: Path, rate: int) -> None:
    tsv, km = tmp_path / "a.tsv", tmp_path / "a.km"
    tsv.write_text("/\n1.wav\t32000\n2.wav\t4000\n")
    km.write_text("\n".join(" ".join(["1"] * (n * rate // 16_000 - 1)) for n in (32_000, 4_000)))
    assert read_unit_labels(tsv, km).label_rate == rate


def test_a_relative_folder_is_relative_to_the_list(tmp_path: Path) -> None:
    path = tmp_path / "lists" / "a.tsv"
    path.parent.mkdir()
    path.write_text("../audio\n1.wav\t16000\n")
    assert read_tsv(path)[0] == tmp_path / "audio"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    files, labels = [("x/1.flac", 16_000), ("2.flac", 400)], [[1, 2, 3], [0]]
    write_tsv(tmp_path / "a.tsv", tmp_path, files)
    with (tmp_path / "a.km").open("w") as file:
        for line in labels:
            write_km(file, np.array(line))
    write_dictionary(tmp_path / "dict.km.txt", [1, 1, 1, 1])
    assert read_tsv(tmp_path / "a.tsv") == (tmp_path, files)
    assert [line.tolist() for line in read_km(tmp_path / "a.km")] == labels
    assert read_dictionary(tmp_path / "dict.km.txt") == ["0", "1", "2", "3"]
    assert (tmp_path / "dict.km.txt").read_text() == "0 1\n1 1\n2 1\n3 1\n"


def test_refuses_another_number_of_lines(pair: tuple[Path, Path]) -> None:
    tsv, km = pair
    km.write_text(km.read_text() + "1 2 3\n")
    with user_error("corpus-inconsistent", rf"{km}, line 3"):
        read_unit_labels(tsv, km)


def test_refuses_labels_of_another_duration(pair: tuple[Path, Path]) -> None:
    tsv, km = pair
    km.write_text(" ".join(["3"] * 24) + "\n" + " ".join(["0"] * 49) + "\n")
    with user_error("corpus-inconsistent", rf"{km}, line 1; {tsv}, line 2"):
        read_unit_labels(tsv, km)


def test_refuses_a_rate_that_does_not_fit(pair: tuple[Path, Path]) -> None:
    with user_error("corpus-inconsistent", "train.km, line 1"):
        read_unit_labels(*pair, label_rate=100.0)
    pair[1].write_text("1 2 3\n4 5\n")
    with user_error("corpus-inconsistent", "train.km"):
        read_unit_labels(*pair)


def test_refuses_classes_that_the_dictionary_lacks(pair: tuple[Path, Path]) -> None:
    with user_error("label-unknown", "train.km, line 2"):
        read_unit_labels(*pair, classes=[str(number) for number in range(17)])
    present = np.unique(np.concatenate(read_km(pair[1])))
    read_unit_labels(*pair, classes=[str(number) for number in present])
    with user_error("label-unknown", "train.km, line"):
        read_unit_labels(*pair, classes=[str(number) for number in present[1:]])


def test_refuses_a_class_that_the_dictionary_has_twice(tmp_path: Path) -> None:
    path = tmp_path / "dict.km.txt"
    path.write_text("0 3\n1 2\n0 1\n")
    with user_error("corpus-malformed", r"dict\.km\.txt, line 3"):
        read_dictionary(path)


@pytest.mark.parametrize("line", ["1 2 x", "", "-1 2", "1,2", "1.5"])
def test_refuses_lines_that_are_not_labels(pair: tuple[Path, Path], line: str) -> None:
    pair[1].write_text(f"1 2\n{line}\n3\n")
    with user_error("corpus-malformed", "train.km, line 2"):
        read_km(pair[1])


@pytest.mark.parametrize("line", ["1.wav 16000", "1.wav\t", "\t16000", "1.wav\t-3", "1.wav\tx"])
def test_refuses_lines_that_are_not_audio(pair: tuple[Path, Path], line: str) -> None:
    pair[0].write_text(f"/\n1.wav\t16000\n{line}\n")
    with user_error("corpus-malformed", "train.tsv, line 3"):
        read_tsv(pair[0])


def test_an_empty_line_does_not_shift_the_labels(pair: tuple[Path, Path]) -> None:
    pair[0].write_text("/\n1.wav\t16000\n\n2.wav\t8000\n")
    with user_error("corpus-malformed", "train.tsv, line 4"):
        read_tsv(pair[0])


def test_refuses_missing_files(tmp_path: Path) -> None:
    with user_error("file-missing", "a.tsv"):
        read_tsv(tmp_path / "a.tsv")
    with user_error("file-missing", "a.km"):
        read_km(tmp_path / "a.km")


def test_compares_the_list_with_the_audio(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "1.wav", np.zeros(8_000), 8_000)
    assert samples_at_16k(tmp_path / "1.wav") == 16_000
    tsv = tmp_path / "a.tsv"
    assert list(check_audio(tsv, tmp_path, [("1.wav", 16_000)])) == ["1.wav"]
    with user_error("corpus-inconsistent", "a.tsv, line 2"):
        list(check_audio(tsv, tmp_path, [("1.wav", 8_000)]))
    with user_error("file-missing", "2.wav"):
        list(check_audio(tsv, tmp_path, [("2.wav", 8_000)]))
