from __future__ import annotations

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
    assert "valid_data.csv does not exist" in problem and "datarc.file_path" in problem
