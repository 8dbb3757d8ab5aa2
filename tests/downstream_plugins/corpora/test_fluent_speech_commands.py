from __future__ import annotations

import csv

import pytest

from downstream_plugins.ic.corpus import FluentSpeechCommands
from tests.mistakes import user_error

HEADER = ",path,speakerId,transcription,action,object,location\n"
ROWS = {
    "train": [
        '0,wavs/speakers/a/1.wav,a,"Lights, please",activate,lights,none',
        "1,wavs/speakers/a/2.wav,a,Volume up,increase,volume,none",
        "2,wavs/speakers/b/1.wav,b,Kitchen lights off,deactivate,lights,kitchen",
        "3,wavs/speakers/b/2.wav,b,Louder,increase,volume,none",
    ],
    "valid": ["0,wavs/speakers/c/1.wav,c,Volume up,increase,volume,kitchen"],
    "test": ["0,wavs/speakers/d/1.wav,d,Off,deactivate,lights,none"],
}


@pytest.fixture
def fluent(tmp_path, write_audio, write_text):
    root = tmp_path / "fluent_speech_commands_dataset"
    for split, rows in ROWS.items():
        write_text(root / "data" / f"{split}_data.csv", HEADER + "\n".join(rows) + "\n")
        for row in rows:
            write_audio(root / row.split(",")[1])
    return root


def test_utterances_are_the_rows_with_their_three_labels(fluent):
    corpus = FluentSpeechCommands(file_path=fluent)
    assert corpus.problems() == []
    found = corpus.utterances("train")
    assert [u.id for u in found] == ["a-1", "a-2", "b-1", "b-2"]
    assert found[0].labels == {"action": "activate", "object": "lights", "location": "none"}
    assert all(u.path.is_file() for split in corpus.splits for u in corpus.utterances(split))


def test_values_are_numbered_by_first_appearance_in_training(fluent):
    assert FluentSpeechCommands(file_path=fluent).label_space() == {
        "action": ["activate", "increase", "deactivate"],
        "object": ["lights", "volume"],
        "location": ["none", "kitchen"],
    }


def test_a_value_that_training_lacks_is_an_error_with_its_line(fluent, write_text):
    row = "0,wavs/speakers/c/1.wav,c,Up,increase,volume,attic\n"
    write_text(fluent / "data" / "valid_data.csv", HEADER + row)
    with user_error("label-unknown", where=r"valid_data\.csv, line 2$") as caught:
        FluentSpeechCommands(file_path=fluent).utterances("valid")
    assert "'attic'" in caught.value.what


def test_a_table_without_a_column_is_an_error_that_names_it(fluent, write_text):
    write_text(fluent / "data" / "test_data.csv", "path,action,object\na.wav,x,y\n")
    with user_error("corpus-malformed", where=r"test_data\.csv$") as caught:
        FluentSpeechCommands(file_path=fluent).utterances("test")
    assert "location" in caught.value.what


def test_problems_name_missing_tables(fluent):
    (fluent / "data" / "valid_data.csv").unlink()
    (problem,) = FluentSpeechCommands(file_path=fluent).problems()
    assert str(fluent / "data" / "valid_data.csv") in problem and "datarc.file_path" in problem


def rows_of(corpus):
    return {s: [(u.id, u.path, u.labels) for u in corpus.utterances(s)] for s in corpus.splits}


def rewrite(root, change):
    for path in sorted((root / "data").glob("*.csv")):
        with path.open(newline="") as file:
            table = list(csv.DictReader(file))
        with path.open("w", newline="") as file:
            change(table, file)


def other_columns(table, file):
    names = ["location", "path", "action", "transcription", "object", "speakerId"]
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)


def written_as(word, line_end="\n"):
    def change(table, file):
        writer = csv.DictWriter(file, table[0], lineterminator=line_end)
        writer.writeheader()
        for row in table:
            row["location"] = word if row["location"] == "none" else row["location"]
            writer.writerow(row)

    return change


@pytest.mark.parametrize(
    "change",
    [
        other_columns,
        written_as(""),
        written_as("None"),
        written_as("NaN"),
        written_as("none", "\r\n"),
        written_as(" none "),
    ],
)
def test_tables_in_another_form_give_the_same_utterances(change, fluent):
    corpus = FluentSpeechCommands(file_path=fluent)
    before, space = rows_of(corpus), corpus.label_space()
    rewrite(fluent, change)
    assert rows_of(corpus) == before and corpus.label_space() == space


@pytest.mark.parametrize(
    "place", ["/home/me/fluent_speech_commands_dataset/", "C:\\fluent\\", "../fsc/"]
)
def test_paths_of_another_machine_are_found_and_noted(place, fluent):
    corpus = FluentSpeechCommands(file_path=fluent)
    before = rows_of(corpus)
    assert corpus.notes() == []

    def change(table, file):
        for row in table:
            row["path"] = place + row["path"].replace("/", "\\" if "\\" in place else "/")
        written_as("none")(table, file)

    rewrite(fluent, change)
    assert rows_of(corpus) == before
    (note,) = corpus.notes()
    assert note.startswith("6 of 6")


@pytest.mark.parametrize("suffix", [".flac", ".opus", ".mp3"])
def test_converted_audio_is_found(suffix, fluent):
    for path in sorted(fluent.rglob("*.wav")):
        path.rename(path.with_suffix(suffix))
    corpus = FluentSpeechCommands(file_path=fluent)
    found = [u for split in corpus.splits for u in corpus.utterances(split)]
    assert all(u.path.is_file() and u.path.suffix == suffix for u in found)


def test_files_that_no_table_names_are_one_warning(fluent, write_audio):
    corpus = FluentSpeechCommands(file_path=fluent)
    assert corpus.findings("train") == []
    for number in (7, 8, 9):
        write_audio(fluent / f"wavs/speakers/a/{number}.wav")
    (finding,) = corpus.findings("train")
    assert not finding.certain and finding.what.startswith("3 of 9")
    assert corpus.findings("valid") == []
