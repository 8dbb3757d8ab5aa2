"""Tables of utterances: every format, whole, damaged and with values that mean something else."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from s3prl_mtl.data import ClassTable, TextRule
from s3prl_mtl.data.folders import record_reads
from s3prl_mtl.data.tables import Table, read_table
from tests.mistakes import user_error


class Words(ClassTable):
    task = "ks"


Made = Callable[[str, str | bytes], Path]


@pytest.fixture
def make(tmp_path: Path) -> Made:
    def _make(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _make


def parquet(path: Path, rows: list[dict[str, Any]], features: Any = None) -> Path:
    table = pa.Table.from_pylist(rows)
    if features is not None:
        table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    path.parent.mkdir(exist_ok=True, parents=True)
    pyarrow.parquet.write_table(table, path)
    return path


def values(table: Table, column: str) -> list[Any]:
    return [row.values.get(column) for row in table.rows]


def json_lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# ------------------------------------------------------------------------------- text


TRUNCATED = gzip.compress(b'{"path": "a.wav"}\n' * 99, mtime=0)[:40]


@pytest.mark.parametrize(
    ("name", "content", "code", "where"),
    [
        (
            "t.csv",
            "path,label\na.wav,go\nb.wav,señor\n".encode("latin1"),
            "file-malformed",
            "line 3$",
        ),
        ("t.csv", "path,label\na.wav,go\n".encode("utf-16"), "file-malformed", "line 1$"),
        ("t.tsv", 'path\ttext\na.wav\tx\nb.wav\t"Yes", he said\n', "file-malformed", "line 3$"),
        # A mark that opens and closes in another line would swallow the rows between them.
        (
            "t.tsv",
            'path\ttext\na.wav\t"Yes\nb.wav\tno\nc.wav\tnice"\n',
            "file-malformed",
            "line 2$",
        ),
        ("t.jsonl", '{"path": "a.wav"}\n{"path":\n', "file-malformed", "line 2$"),
        ("t.jsonl", b'{"path": "a.wav"}\n{"path": "\xff"}\n', "file-malformed", "line 2$"),
        ("t.jsonl", "[1]\n", "file-malformed", "line 1$"),
        ("t.jsonl.gz", b"text", "file-malformed", r"t\.jsonl\.gz$"),
        ("t.jsonl.gz", TRUNCATED, "file-malformed", r"gz$"),
        ("t.parquet", b"PAR1 and more", "file-malformed", r"parquet$"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(
    make: Made, name: str, content: str | bytes, code: str, where: str
):
    with user_error(code, where=where):
        read_table(make(name, content))


@pytest.mark.parametrize(
    ("name", "content", "fix"),
    [
        ("t.csv", "path;label\na.wav;go\n", "semicolons"),
        ("t.csv", "path\tlabel\na.wav\tgo\n", "tabs"),
        ("t.tsv", "path,label\na.wav,go\n", "commas"),
    ],
)
def test_another_separator_is_named(make: Made, name: str, content: str, fix: str):
    with user_error("file-malformed", where="line 1$", fix=fix):
        read_table(make(name, content))


def test_a_field_may_be_longer_than_the_limit_of_the_csv_module(make: Made):
    table = read_table(make("t.csv", f'path,segments\na.wav,"{"x" * 200_000}"\n'))
    assert [len(text) for text in values(table, "segments")] == [200_000]


def test_numbers_are_the_same_labels_in_every_format(make: Made, tmp_path: Path):
    rows = [{"id": n, "path": "a.wav", "label": label} for n, label in enumerate([1, "1", 1.0, 10])]
    of_json = make("t.jsonl", json_lines(*rows))
    of_csv = make("t.csv", "id,path,label\n0,a.wav,1\n1,a.wav,10\n")
    of_parquet = parquet(
        tmp_path / "t.parquet",
        [{"id": n, "path": "a.wav", "label": label} for n, label in enumerate([1.0, 10.0])],
    )
    for path in (of_json, of_csv, of_parquet):
        assert Words({"train": path}).label_space() == {"classes": ["1", "10"]}


@pytest.mark.parametrize("label", [["go"], {"name": "go"}])
def test_a_label_that_is_not_a_text_is_refused(make: Made, label: Any):
    table = make("t.jsonl", json_lines({"path": "a.wav", "label": label}))
    with user_error("corpus-malformed", where="line 1$"):
        Words({"train": table}).utterances("train")


@pytest.mark.parametrize("row", [{"path": 5}, {"path": ["a.wav"]}, {"audio": {"array": [0.0]}}])
def test_a_path_that_is_not_a_text_is_refused(make: Made, row: dict[str, Any]):
    table = make("t.jsonl", json_lines({**row, "label": "go"}))
    with user_error("file-malformed", where="line 1$"):
        Words({"train": table}).utterances("train")


# ----------------------------------------------------------------------------- lhotse


def cut(**changes: Any) -> dict[str, Any]:
    source = {"type": "file", "channels": [0], "source": "a.wav"}
    return {
        "id": "one",
        "start": 0.0,
        "duration": 1.0,
        "channel": 0,
        "supervisions": [],
        "recording": {"id": "r", "sources": [source], "sampling_rate": 16_000},
        "type": "MonoCut",
        **changes,
    }


STEREO = {"type": "file", "channels": [0, 1], "source": "a.wav"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"recording": None}, "file-malformed"),
        ({"recording": {"sources": [{"type": "file"}]}}, "file-malformed"),
        ({"supervisions": [5]}, "file-malformed"),
        ({"recording": {"sources": [{"type": "memory", "source": "x"}]}}, "not-supported"),
        ({"recording": {"sources": [STEREO]}, "channel": 1}, "not-supported"),
        (
            {"recording": {"sources": [cut()["recording"]["sources"][0]], "transforms": [{}]}},
            "not-supported",
        ),
        ({"supervisions": [{"text": "a"}, {"text": "b"}]}, "not-supported"),
    ],
)
def test_a_cut_that_is_not_a_segment_of_a_file_is_refused(
    make: Made, changes: dict[str, Any], code: str
):
    with user_error(code, where="line 1$"):
        read_table(make("t.jsonl", json_lines(cut(**changes))))


def test_a_cut_of_all_channels_is_taken(make: Made):
    entry = cut(recording={"sources": [STEREO]}, channel=[0, 1])
    assert values(read_table(make("t.jsonl", json_lines(entry))), "path") == ["a.wav"]


@pytest.fixture
def shar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three cuts of half a second of one file, in two shards."""
    monkeypatch.setenv("S3PRL_MTL_CACHE", str(tmp_path / "cache"))
    samples = np.random.default_rng(0).normal(size=32_000) * 0.1
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    recording = Recording.from_file(tmp_path / "a.wav")
    cuts = [
        MonoCut(
            id=f"c{number}",
            start=number / 2,
            duration=0.5,
            channel=0,
            recording=recording,
            supervisions=[
                SupervisionSegment(
                    id=f"s{number}",
                    recording_id=recording.id,
                    start=0,
                    duration=0.5,
                    speaker="x",
                    custom={"label": "go"},
                )
            ],
        )
        for number in range(3)
    ]
    folder = tmp_path / "shar"
    folder.mkdir()
    CutSet.from_cuts(cuts).to_shar(folder, fields={"recording": "flac"}, shard_size=2)
    return folder


def test_the_cuts_of_shar_are_rows_with_their_audio(shar: Path):
    found = Words({"train": shar}).utterances("train")
    assert [(u.id, u.start_seconds, u.duration_seconds) for u in found] == [
        (f"c{number}", 0, 0.5) for number in range(3)
    ]
    assert all(u.labels == {"class": "go", "speaker": "x"} for u in found)
    whole, _ = soundfile.read(shar.parent / "a.wav")
    assert [soundfile.read(u.path)[0].tolist() for u in found] == [
        whole[start : start + 8000].tolist() for start in (0, 8000, 16_000)
    ]


def test_a_damaged_shard_is_refused(shar: Path):
    tar = shar / "recording.000001.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    with user_error("file-malformed", where="cut 3$"):
        read_table(shar)
    tar.unlink()
    with user_error("file-malformed", where="shar$"):
        read_table(shar)


# ------------------------------------------------------------------------------ Kaldi


def test_kaldi_tables_may_have_tabs_and_segments_to_the_end(make: Made):
    make("k/wav.scp", "r1\t../a.wav\n")
    make("k/segments", "u r1 0.5 -1\n")
    table = read_table(make("k/utt2label", "u\tgo\n").parent)
    (row,) = table.rows
    assert dict(row.values) == {"id": "u", "path": "../a.wav", "start": 0.5, "label": "go"}


@pytest.mark.parametrize(
    ("files", "code", "where"),
    [
        ({"wav.scp": "r1 sph2pipe -f wav a.sph |\n"}, "not-supported", "wav.scp, line 1$"),
        ({"wav.scp": "r1\n"}, "file-malformed", "wav.scp, line 1$"),
        ({"wav.scp": "r1 a.wav\nr1 b.wav\n"}, "corpus-duplicates", "wav.scp, lines 1 and 2$"),
        ({"wav.scp": "r1 a.wav\n", "segments": "u\n"}, "file-malformed", "segments, line 1$"),
        ({"wav.scp": "r1 a.wav\n", "segments": "u r1\n"}, "file-malformed", "segments, line 1$"),
        (
            {"wav.scp": "r1 a.wav\n", "segments": "u r1 0 1\nu r1 1 2\n"},
            "corpus-duplicates",
            "segments, lines 1 and 2$",
        ),
    ],
)
def test_a_mistake_in_a_kaldi_folder_is_named(
    make: Made, files: dict[str, str], code: str, where: str
):
    for name, content in files.items():
        folder = make(f"k/{name}", content).parent
    with user_error(code, where=where):
        read_table(folder)


# ----------------------------------------------------------------- Parquet, Hugging Face


def feature(kind: Any) -> Any:
    return {"info": {"features": {"label": kind}}}


NAMES = {"names": ["x", "y"], "_type": "ClassLabel"}


def test_the_number_of_no_class_is_a_missing_value(tmp_path: Path):
    rows = [{"path": "a.wav", "label": -1}, {"path": "b.wav", "label": 1}]
    table = parquet(tmp_path / "t.parquet", rows, feature(NAMES))
    assert values(read_table(table), "label") == [None, "y"]
    with user_error("corpus-malformed", where="row 1$"):
        Words({"train": table}).utterances("train")


def test_a_number_without_a_class_is_refused(tmp_path: Path):
    rows = [{"path": "a.wav", "label": 2}]
    with user_error("file-malformed", where="row 1$"):
        read_table(parquet(tmp_path / "t.parquet", rows, feature(NAMES)))


@pytest.mark.parametrize("kind", [{"feature": NAMES, "_type": "List"}, [NAMES]])
def test_lists_of_classes_have_their_names(kind: Any, tmp_path: Path):
    rows = [{"path": "a.wav", "label": [1, 0]}]
    table = read_table(parquet(tmp_path / "t.parquet", rows, feature(kind)))
    assert values(table, "label") == [["y", "x"]]


def test_metadata_of_other_programs_is_no_error(tmp_path: Path):
    rows = [{"path": "a.wav", "label": 1}]
    assert values(read_table(parquet(tmp_path / "t.parquet", rows, {})), "label") == [1]


def test_a_folder_of_several_splits_is_refused_and_a_pattern_takes_one(tmp_path: Path):
    for split in ("train", "test"):
        for part in "01":
            name = f"{split}-0000{part}-of-00002.parquet"
            parquet(tmp_path / "data" / name, [{"path": "a.wav", "label": split + part}])
    with user_error("file-malformed", where="data$", fix=r"train-\*\.parquet"):
        read_table(tmp_path / "data")
    corpus = Words({"train": tmp_path / "data" / "train-*.parquet"})
    assert corpus.problems() == []
    assert corpus.label_space() == {"classes": ["train0", "train1"]}
    assert len(Words({"train": tmp_path / "data" / "dev-*.parquet"}).problems()) == 1


def test_bytes_come_before_the_path_from_which_they_were_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("S3PRL_MTL_CACHE", str(tmp_path / "cache"))
    rows = [
        {"path": "/gone/one.wav", "audio": {"bytes": b"1", "path": "one.wav"}, "label": "go"},
        {"path": "/gone/two.wav", "audio": {"bytes": b"1", "path": "two.wav"}, "label": "go"},
    ]
    found = Words({"train": parquet(tmp_path / "t.parquet", rows)}).utterances("train")
    assert [u.id for u in found] == ["one", "two"]
    assert [u.path.read_bytes() for u in found] == [b"1", b"1"]


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ([], "file-malformed"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "file-malformed"),
        ({"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}, "not-supported"),
    ],
)
def test_a_saved_data_set_that_cannot_be_read_as_it_is(make: Made, state: Any, code: str):
    folder = make("saved/state.json", json.dumps(state)).parent
    with user_error(code, where="saved$"):
        read_table(folder)


def test_a_data_set_is_fetched_by_the_package_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("datasets")
    monkeypatch.setenv("S3PRL_MTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "fetched")
    features = feature(NAMES)
    features["info"]["features"]["audio"] = {"_type": "Audio"}
    rows = [{"audio": {"bytes": b"1", "path": "one.wav"}, "label": 1}]
    parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", rows, features)
    corpus = Words({"train": f"hf:{tmp_path / 'set'}:train", "dev": "hf:no/such:train"})
    assert corpus.problems() == []
    (utterance,) = corpus.utterances("train")
    assert utterance.id == "one" and utterance.path.read_bytes() == b"1"
    assert utterance.labels == {"class": "y"}
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with user_error("download-failed", where="hf:no/such:train"):
        corpus.utterances("dev")


class FakeDataSets:
    """Stands for the package `datasets`: records what is loaded, and has one example."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, str | None, str]] = []
        self.table = pa.table({"path": ["/a.wav"], "label": ["go"]})
        self.features = self
        self.arrow_schema = self.table.schema

    def load_dataset(self, name: str, config: str | None, split: str) -> FakeDataSets:
        self.loaded.append((name, config, split))
        return self

    def with_format(self, kind: str) -> FakeDataSets:
        return self

    def iter(self, batch_size: int) -> Iterator[pa.Table]:
        yield self.table


@pytest.mark.parametrize(
    ("named", "loaded"),
    [
        ("hf:me/words:train", ("me/words", None, "train")),
        ("hf:me/words@de_de:train[:10%]", ("me/words", "de_de", "train[:10%]")),
    ],
)
def test_the_name_of_a_data_set_has_a_configuration_and_a_split(
    named: str, loaded: tuple[str, str | None, str], monkeypatch: pytest.MonkeyPatch
):
    fake = FakeDataSets()
    monkeypatch.setattr("s3prl_mtl.data.table_formats.import_module", lambda name: fake)
    monkeypatch.setattr("s3prl_mtl.data.table_formats.require_packages", lambda *arguments: None)
    assert values(read_table(Path(named)), "label") == ["go"]
    assert fake.loaded == [loaded]


def test_a_data_set_without_a_split_is_refused():
    with user_error("invalid-value", where="hf:me/words"):
        read_table(Path("hf:me/words"))


def test_a_data_set_needs_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with user_error("missing-package", where="hf:me/words:train", fix="hf"):
        read_table(Path("hf:me/words:train"))


# ----------------------------------------------------------------------------- corpora


def test_a_table_is_parsed_once_and_not_sent_to_workers(
    make: Made, monkeypatch: pytest.MonkeyPatch
):
    path = make("t.csv", "path,label\na.wav,go\n")
    corpus = Words({"train": path})
    parsed: list[Path] = []
    monkeypatch.setattr(
        "s3prl_mtl.data.table_corpus.read_table",
        lambda path: parsed.append(path) or read_table(path),
    )
    for _ in range(2):
        with record_reads() as reads:
            corpus.utterances("train")
            corpus.label_space()
            corpus.findings("train")
        assert str(path) in reads
    assert parsed == [path]
    assert pickle.loads(pickle.dumps(corpus))._tables == {}


@pytest.mark.parametrize("manifests", [{"train": None}, {"train": ["a.csv"]}, "a.csv", {}])
def test_manifests_of_another_type_are_refused(manifests: Any):
    with user_error("wrong-type", where="datarc.manifests"):
        Words(manifests)


@pytest.mark.parametrize(
    ("content", "code", "where"),
    [("", "corpus-empty", "c.txt$"), ("go\nno\ngo\n", "corpus-malformed", "lines 1 and 3$")],
)
def test_a_file_of_classes_has_each_class_once(make: Made, content: str, code: str, where: str):
    corpus = Words({"train": make("t.csv", "path,label\na.wav,go\n")}, make("c.txt", content))
    with user_error(code, where=where):
        corpus.label_space()


def test_a_missing_file_of_classes_is_a_problem(make: Made, tmp_path: Path):
    corpus = Words({"train": make("t.csv", "path,label\na.wav,go\n")}, tmp_path / "no.txt")
    (problem,) = corpus.problems()
    assert "no.txt" in problem


@pytest.mark.parametrize("text", ["한국어", "हिन्दी में", "が", "שָׁלוֹם", "ภาษาไทย", "می\u200cروم"])
def test_other_scripts_keep_their_letters(text: str):
    assert TextRule(accents="strip", case="lower")(text) == TextRule()(text).lower()


def test_invisible_characters_are_no_letters():
    assert TextRule()("a\u00adb\u200b c\u200fd") == "AB CD"


def test_a_rule_that_is_not_a_mapping_is_refused():
    with user_error("wrong-type", where="asr.text"):
        TextRule.from_settings("lower", "asr.text")  # type: ignore[arg-type]
