"""Own data: tables in place of a corpus, for each of the nine tasks."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile

from downstream_plugins.asr.table import TextTable
from downstream_plugins.ic import IntentClassification
from downstream_plugins.pr.table import PhoneTable
from downstream_plugins.sd.table import RecordingTable
from downstream_plugins.sf.table import SlotTable
from downstream_plugins.sv.table import VerificationTable
from s3prl_mtl.api import check_corpus, manifest, train
from s3prl_mtl.api.run_inputs import config_of
from s3prl_mtl.cli.main import command_parser, main
from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.data import ClassTable, Corpus, TextRule, Utterance
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS
from tests.mistakes import user_error


def corpus_of(task: str, overrides: str = "", **flags: Any) -> Corpus:
    config = resolve(build_config((), {"downstream": [task], **flags}, overrides))
    expert: Any = load_task(task)
    made: Corpus = expert.make_corpus(config.tasks[task].downstream_expert["datarc"])
    return made


def facts(utterance: Utterance) -> tuple[Any, ...]:
    labels = {k: v for k, v in utterance.labels.items() if k != "speaker"}
    start = round(utterance.start_seconds, 6)
    return utterance.id, utterance.path.resolve(), start, utterance.duration_seconds, labels


@pytest.mark.parametrize("task", BUILT_IN_TASKS)
def test_a_corpus_written_as_tables_reads_the_same(task: str, tiny_corpus: Path, tmp_path: Path):
    assert main(["manifest", task, "--data", str(tiny_corpus), "-o", str(tmp_path)]) == 0
    folders = corpus_of(task, data=str(tiny_corpus))
    tables = {split: str(tmp_path / f"{split}.csv") for split in folders.splits}
    trials = {split: str(tmp_path / f"trials-{split}.txt") for split in ("dev", "test")}
    flags: dict[str, Any] = {f"{task}.downstream_expert.datarc.manifests": tables}
    if task == "sv":
        flags["sv.downstream_expert.datarc.trials"] = trials
    own = corpus_of(task, **flags)
    assert own.problems() == [] and own.splits == folders.splits
    for split in own.splits:
        assert own.findings(split) == []
        expected = [facts(utterance) for utterance in folders.utterances(split)]
        found = [facts(utterance) for utterance in own.utterances(split)]
        if task == "sv":  # the speaker is the label
            assert [u.labels for u in own.utterances(split)] == [
                dict(u.labels) for u in folders.utterances(split)
            ]
        if task == "sd":  # speakers have numbers as names
            assert [f[:3] for f in found] == [f[:3] for f in expected]
            assert [f[4]["segments"] for f in found] == [f[4]["segments"] for f in expected]
        elif task == "ks" and split == "test":  # its silence has one second
            assert [f[:4] for f in found] == [f[:4] for f in expected]
        elif task == "sf":
            assert [(f[0], f[1], f[4]) for f in found] == [(f[0], f[1], f[4]) for f in expected]
        else:
            assert found == expected
    for first, second in combinations(own.splits, 2):  # no check is stricter, or the run ends
        labels = [utterance.labels for utterance in folders.utterances(second)]
        assert all(
            own.may_share(first, second, one) or not folders.may_share(first, second, one)
            for one in labels
        )
        if folders.shared_speakers(first, second) != "error":
            assert own.shared_speakers(first, second) != "error"
    spaces = own.label_space(), folders.label_space()
    for key, values in spaces[1].items():
        ours = spaces[0][key]
        if task in ("pr", "sf"):  # what occurs in training
            assert set(ours) <= set(values)
        elif isinstance(values, list) and task != "asr":
            assert sorted(ours) == sorted(values)
        else:
            assert ours == values
    if task == "sv":
        assert own.trials("test") == folders.trials("test")  # type: ignore[attr-defined]


# --------------------------------------------------------------------------- settings


def datarc_of(task: str, overrides: str = "", **flags: Any) -> tuple[Any, dict[str, Any]]:
    config = resolve(build_config((), {"downstream": [task], **flags}, overrides))
    return config.tasks[task], config.tasks[task].downstream_expert["datarc"]


def manifests(task: str, **tables: str) -> dict[str, Any]:
    return {f"{task}.downstream_expert.datarc.manifests": tables}


def test_the_table_named_train_trains_wherever_it_stands():
    block, datarc = datarc_of("er", **manifests("er", dev="d.csv", test="t.csv", train="x.csv"))
    assert (block.train_split, block.dev_splits, block.test_splits) == ("train", ["dev"], ["test"])
    assert list(datarc["manifests"]) == ["train", "dev", "test"]


def test_a_named_training_split_trains_and_the_first_table_otherwise():
    tables = manifests("er", valid="v.csv", mine="hf:me/words:train")
    block, datarc = datarc_of("er", "er.train_split=mine", **tables)
    assert block.train_split == "mine"
    assert next(iter(datarc["manifests"].items())) == ("mine", "hf:me/words:train")
    assert (block.dev_splits, block.test_splits) == (["valid"], [])
    block, _ = datarc_of("er", **manifests("er", mine="m.csv", valid="v.csv"))
    assert block.train_split == "mine"


def test_tables_without_one_to_validate_on_are_refused():
    with user_error("missing-option", where="er.downstream_expert.datarc.manifests"):
        datarc_of("er", **manifests("er", train="x.csv", test="t.csv"))


@pytest.mark.parametrize("data", [{}, {"data": "corpora"}])
def test_paths_of_the_corpus_are_not_those_of_tables(data: dict[str, str], tmp_path: Path):
    tables = manifests("pr", train="x.csv", dev="d.csv")
    _, datarc = datarc_of("pr", **tables, **data)
    assert datarc["lexicon"] is None
    _, datarc = datarc_of("pr", "pr.downstream_expert.datarc.lexicon=[words.txt]", **tables, **data)
    assert datarc["lexicon"] == [str(Path("words.txt").absolute())]


def test_files_of_a_run_are_absolute():
    trials = "sv.downstream_expert.datarc.trials.dev=trials.txt"
    _, datarc = datarc_of("sv", trials, **manifests("sv", train="x.csv", dev="~/d.csv"))
    assert datarc["trials"] == {"dev": str(Path("trials.txt").absolute())}
    assert datarc["manifests"]["dev"] == str(Path.home() / "d.csv")
    _, datarc = datarc_of("asr", "asr.downstream_expert.datarc.pseudo_labels=p.jsonl", data="d")
    assert datarc["pseudo_labels"] == str(Path("p.jsonl").absolute())
    _, datarc = datarc_of("ssl", "ssl.downstream_expert.datarc.path=labels")
    assert datarc["path"] == str(Path("labels").absolute())


def test_sv_without_trials_says_which_are_missing(tmp_path: Path):
    corpus = VerificationTable({"train": tmp_path / "x.csv", "dev": tmp_path / "d.csv"})
    with user_error("corpus-unset", where="datarc.trials"):
        corpus.trials("dev")
    with user_error("wrong-type", where="datarc.trials"):
        VerificationTable({"train": tmp_path / "x.csv"}, trials="t.txt")  # type: ignore[arg-type]


def test_trials_that_contradict_the_speakers_are_reported(tmp_path: Path):
    table = write(tmp_path / "dev.csv", "id,path,speaker\n1,a.wav,x\n2,b.wav,x\n3,c.wav,y\n")
    trials = write(tmp_path / "trials.txt", "1 1 2\n0 1 3\n1 2 3\n")
    corpus = VerificationTable({"train": table, "dev": table}, trials={"dev": trials})
    assert corpus.findings("train") == []
    (finding,) = corpus.findings("dev")
    assert finding.certain and finding.where.endswith("trials.txt, line 3")


def test_training_without_a_long_utterance_says_what_excludes_them(tmp_path: Path):
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", [0.1, -0.1] * 8_000, 16_000)
    table = write(tmp_path / "t.csv", "path,speaker\na.wav,x\nb.wav,y\n")
    with user_error("corpus-empty", where=r"t\.csv", fix="2 of 2"):
        check_corpus(
            "sv", manifest={"sv": {"train": table, "dev": table}}, cache_dir=tmp_path / "cache"
        )


def config_of_flags(*entries: str) -> dict[str, Any]:
    words = ["-u", "hubert_tiny", "-d", "ks"]
    words += [word for entry in entries for word in ("--manifest", entry)]
    return config_of(command_parser("train").parse_args(words), None, DeferredLog())


def test_the_flag_for_tables_may_be_repeated_but_not_a_split():
    config = config_of_flags("ks:train=x.csv", "ks:dev=d.csv,test=t.csv")
    tables = config["ks"]["downstream_expert"]["datarc"]["manifests"]
    assert list(tables) == ["train", "dev", "test"]
    with user_error("invalid-value", where="--manifest"):
        config_of_flags("ks:train=x.csv", "ks:dev=d.csv,train=y.csv")


# --------------------------------------------------------------------------- tasks


def test_every_slot_of_own_data_has_outputs():
    settings = {"modelrc": {"projector_dim": 4, "select": "UtteranceLevel", "UtteranceLevel": {}}}
    space = {"action": ["a", "b"], "object": ["c"], "location": ["d"], "device": ["e", "f"]}
    expert = IntentClassification(8, 320, settings, "", labels=space)
    assert list(expert.answers) == list(space)


def test_predicted_transcripts_are_added_to_the_training_table(clips: Clips, tmp_path: Path):
    table = write(tmp_path / "t.csv", "path,text\na.wav,go\n")
    lines = [
        {"file": "b.wav", "asr": {"text": "no way", "confidence": 0.95}},
        {"file": "a.wav", "asr": {"text": "known", "confidence": 0.95}},
        {"file": "c.wav", "asr": {"text": "unsure", "confidence": 0.1}},
    ]
    predicted = write(tmp_path / "p.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    corpus = TextTable({"train": table, "dev": table}, pseudo_labels=predicted)
    assert [u.labels["text"] for u in corpus.utterances("train")] == ["GO", "NO WAY"]
    assert [u.labels["text"] for u in corpus.utterances("dev")] == ["GO"]
    (note,) = corpus.notes()
    assert "1 pseudo-labelled" in note
    assert "N" not in corpus.label_space()["symbols"]


def test_the_boundary_of_words_in_a_text_is_a_blank(tmp_path: Path):
    table = write(tmp_path / "t.csv", "path,text\na.wav,a|b\n")
    (utterance,) = TextTable({"train": table}, text={"punctuation": "keep"}).utterances("train")
    assert utterance.labels["text"] == "A B"


@pytest.mark.parametrize("phones", [[], "AH <pad>", {"a": 1}])
def test_phones_that_are_none_are_refused(phones: Any, tmp_path: Path):
    table = json_lines(tmp_path, [{"path": "a.wav", "phones": phones}])
    with user_error("corpus-malformed", where="line 1$"):
        PhoneTable({"train": table}).utterances("train")


@pytest.mark.parametrize("slots", [{"a": 1}, ["x", None]])
def test_slots_that_are_no_texts_are_refused(slots: Any, tmp_path: Path):
    table = json_lines(tmp_path, [{"path": "a.wav", "text": "a b", "slots": slots}])
    with user_error("corpus-malformed", where="line 1$"):
        SlotTable({"train": table}).utterances("train")


@pytest.mark.parametrize("end", [9.0, float("inf"), float("nan")])
def test_a_segment_after_the_end_of_its_recording_is_refused(end: float, tmp_path: Path):
    table = json_lines(tmp_path, [{"path": "a.wav", "duration": 2, "segments": [["x", 0, end]]}])
    with user_error("corpus-inconsistent", where="line 1$"):
        RecordingTable({"train": table}).utterances("train")


def test_a_recording_that_an_rttm_file_of_several_lacks_is_refused(tmp_path: Path):
    lines = "SPEAKER {} 1 0 1 <NA> <NA> s\n"
    write(tmp_path / "r.rttm", lines.format("one") + lines.format("two"))
    table = json_lines(tmp_path, [{"path": "a.wav", "duration": 2, "rttm": "r.rttm"}])
    with user_error("corpus-inconsistent", where="r.rttm, for .*line 1$", fix="one"):
        RecordingTable({"train": table}).utterances("train")


@pytest.mark.parametrize("task", ["er", "ic", "sd"])
def test_a_run_trains_and_evaluates_on_tables(task: str, tiny_corpus: Path, tmp_path: Path):
    assert main(["manifest", task, "--data", str(tiny_corpus), "-o", str(tmp_path)]) == 0
    dev = "valid" if task == "ic" else "dev"
    tables = f"{task}:train={tmp_path}/train.csv,dev={tmp_path}/{dev}.csv,test={tmp_path}/test.csv"
    words = ["-u", "hubert_tiny", "-d", task, "--manifest", tables, "--steps", "1"]
    words += ["-p", str(tmp_path / "run"), "-o", f"device=cpu,,cache_dir={tmp_path / 'cache'}"]
    assert main(["train", *words]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())[task].keys() >= {"test"}
    assert main(["evaluate", "-e", str(tmp_path / "run"), "-t", f"{task}:dev"]) == 0


def test_an_rttm_file_of_one_recording_is_that_of_one_row(tmp_path: Path):
    write(tmp_path / "one.rttm", "SPEAKER a0 1 0.0 0.5 <NA> <NA> ann <NA> <NA>\n")
    rows = "path,duration,rttm\n{}.wav,1.0,one.rttm\n"
    named = RecordingTable({"train": write(tmp_path / "one.csv", rows.format("other"))})
    assert named.utterances("train")[0].labels["segments"] == [[0, 0.0, 0.5]]
    for first, second in (("a0", "a1"), ("a1", "a0")):
        table = write(
            tmp_path / f"{first}.csv", rows.format(first) + f"{second}.wav,1.0,one.rttm\n"
        )
        with user_error("corpus-inconsistent", where=r"one\.rttm, for"):
            RecordingTable({"train": table}).utterances("train")


def test_a_table_of_one_class_is_named(tmp_path: Path):
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", [0.1, -0.1] * 8_000, 16_000)
    tables = {
        split: write(tmp_path / f"{split}.csv", f"path,label\n{name}.wav,go\n")
        for split, name in zip(("train", "dev", "test"), "abc", strict=True)
    }
    report = check_corpus("er", manifest={"er": tables}, cache_dir=tmp_path / "cache")
    assert [f.where for f in report.findings if f.code == "corpus-incomplete"] == ["class go"]


def test_a_class_that_training_lacks_is_named_with_its_line(tmp_path: Path):
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", [0.1, -0.1] * 8_000, 16_000)
    train_table = write(tmp_path / "train.csv", "path,label\na.wav,go\n")
    dev = write(tmp_path / "dev.csv", "path,label\nb.wav,go\nc.wav,stop\n")
    with user_error("label-unknown", where=r"dev\.csv, line 3; .*classes", fix="go"):
        check_corpus(
            "er", manifest={"er": {"train": train_table, "dev": dev}}, cache_dir=tmp_path / "cache"
        )


def test_tables_that_exist_are_kept(tiny_corpus: Path, tmp_path: Path):
    mine = write(tmp_path / "test.csv", "path,label\nmine.wav,happy\n")
    with user_error("file-exists", where=str(tmp_path)):
        manifest("er", data=tiny_corpus, out=tmp_path)
    assert list(tmp_path.iterdir()) == [mine]
    assert mine.read_text() == "path,label\nmine.wav,happy\n"


@pytest.mark.parametrize(
    ("flag", "setting"),
    [
        ("manifest", {"ks": {"train": "a.csv", "dev": "b.csv"}}),
        ("manifest", "ks:train=a.csv,dev=b.csv"),
        ("fraction", {"ks": 0.5}),
        ("fraction", "er=0.5,ks=0.5"),
    ],
)
def test_settings_of_a_task_that_the_run_has_not_are_refused(
    flag: str, setting: Any, tiny_corpus: Path, tmp_path: Path
):
    words: dict[str, Any] = {"upstream": "hubert_tiny", "downstream": "er", flag: setting}
    with user_error("unknown-name", where=f"^--{flag} ks$", fix="er"):
        train(**words, data=tiny_corpus, dry_run=True)
    if flag == "manifest":
        with user_error("unknown-name", where="^--manifest ks$", fix="er"):
            check_corpus("er", data=tiny_corpus, manifest=setting)


# --------------------------------------------------------------------------- formats


class Words(ClassTable):
    task = "ks"


@pytest.fixture
def clips(tmp_path: Path) -> list[dict[str, Any]]:
    """Three clips of two files, by name, start, duration, speaker and label."""
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", [0.1] * 32_000, 16_000)
    return [
        {
            "id": "one",
            "path": "a.wav",
            "start": 0.0,
            "duration": 1.0,
            "speaker": "x",
            "label": "go",
        },
        {
            "id": "two",
            "path": "a.wav",
            "start": 1.0,
            "duration": 0.5,
            "speaker": "x",
            "label": "no",
        },
        {
            "id": "tea",
            "path": "b.wav",
            "start": 0.0,
            "duration": 2.0,
            "speaker": "ÿ",
            "label": "go",
        },
    ]


Clips = list[dict[str, Any]]


def delimited(folder: Path, clips: Clips, name: str, delimiter: str, encoding: str) -> Path:
    with (folder / name).open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(clips[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(clips)
    return folder / name


def json_lines(folder: Path, clips: Clips) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(clip) + "\n" for clip in clips), encoding="utf-8")
    return path


def zipped_cuts(folder: Path, clips: Clips) -> Path:
    """The cuts of a lhotse CutSet."""
    path = folder / "cuts.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for clip in clips:
            source = {"type": "file", "channels": [0], "source": clip["path"]}
            supervision = {
                "id": clip["id"],
                "recording_id": "r",
                "start": 0.0,
                "duration": clip["duration"],
                "speaker": clip["speaker"],
                "custom": {"label": clip["label"]},
            }
            cut = {
                "id": clip["id"],
                "start": clip["start"],
                "duration": clip["duration"],
                "channel": 0,
                "supervisions": [supervision],
                "recording": {"id": "r", "sources": [source], "sampling_rate": 16_000},
                "type": "MonoCut",
            }
            file.write(json.dumps(cut) + "\n")
    return path


def kaldi(folder: Path, clips: Clips) -> Path:
    kaldi = folder / "kaldi"
    kaldi.mkdir()
    tables = {
        "wav.scp": [f"rec-{n} ../{n}.wav" for n in ("a", "b")],
        "segments": [
            f"{c['id']} rec-{c['path'][0]} {c['start']} {c['start'] + c['duration']}" for c in clips
        ],
        "utt2spk": [f"{c['id']} {c['speaker']}" for c in clips],
        "utt2label": [f"{c['id']} {c['label']}" for c in clips],
    }
    for name, lines in tables.items():
        (kaldi / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return kaldi


def parquet(folder: Path, clips: Clips) -> Path:
    """A data set of the Hugging Face hub: classes are numbers, `audio` has paths."""
    names = ["go", "no"]
    info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    rows = [
        {
            **{key: value for key, value in clip.items() if key != "path"},
            "audio": {"bytes": None, "path": clip["path"]},
            "label": names.index(clip["label"]),
        }
        for clip in clips
    ]
    table = pa.Table.from_pylist(rows)
    table = table.replace_schema_metadata({b"huggingface": json.dumps(info).encode()})
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    return folder / "t.parquet"


def saved(folder: Path, clips: Clips) -> Path:
    """A split as `datasets` saves it to disk."""
    split = folder / "saved"
    split.mkdir()
    table = pa.Table.from_pylist([{**clip, "path": f"../{clip['path']}"} for clip in clips])
    sink = pa.OSFile(str(split / "data.arrow"), "wb")
    with sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return split


FORMATS: Mapping[str, Callable[[Path, Clips], Path]] = {
    "csv": lambda folder, clips: delimited(folder, clips, "t.csv", ",", "utf-8"),
    "csv of a spreadsheet": lambda f, clips: delimited(f, clips, "t.csv", ",", "utf-8-sig"),
    "tsv": lambda folder, clips: delimited(folder, clips, "t.tsv", "\t", "utf-8"),
    "jsonl": json_lines,
    "lhotse": zipped_cuts,
    "kaldi": kaldi,
    "parquet": parquet,
    "datasets": saved,
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_utterances(kind: str, clips: Clips, tmp_path: Path):
    corpus = Words({"train": FORMATS[kind](tmp_path, clips)})
    found = corpus.utterances("train")
    assert [
        (u.id, u.path.resolve(), u.start_seconds, u.duration_seconds, dict(u.labels)) for u in found
    ] == [
        (
            c["id"],
            tmp_path / c["path"],
            c["start"],
            c["duration"],
            {"class": c["label"], "speaker": c["speaker"]},
        )
        for c in clips
    ]
    assert corpus.label_space() == {"classes": ["go", "no"]}
    assert corpus.findings("train") == []


def test_bytes_of_audio_are_written_once(
    clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("S3PRL_MTL_CACHE", str(tmp_path / "cache"))
    content = (tmp_path / "a.wav").read_bytes()
    rows = [{"audio": {"bytes": content, "path": f"{n}.wav"}, "label": "go", "id": n} for n in "pq"]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    first, second = Words({"train": tmp_path / "t.parquet"}).utterances("train")
    assert first.path == second.path and first.path.read_bytes() == content


# ---------------------------------------------------------------------------- mistakes


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        ("path,lable\na.wav,go\n", "corpus-malformed", r"t\.csv$"),
        ("path,label\na.wav,go\nb.wav,\n", "corpus-malformed", "line 3$"),
        ("label\ngo\n", "corpus-malformed", r"t\.csv$"),
        ("path,label\na.wav,go,2\n", "file-malformed", "line 2$"),
        ("path,label,label\na.wav,go,no\n", "file-malformed", "line 1$"),
        ("path,label\n", "corpus-empty", r"t\.csv$"),
        ("path,label\na\0.wav,go\n", "file-malformed", "line 2$"),
        ("id,path,label\nx,a.wav,go\nx,b.wav,no\n", "corpus-duplicates", "line 2; .*line 3$"),
        ("path,label,start\na.wav,go,soon\n", "corpus-malformed", "line 2$"),
        ("path,label,duration\na.wav,go,-1\n", "corpus-malformed", "line 2$"),
        ('path,label\n"a.wav,go\n', "file-malformed", "line 2$"),
    ],
)
def test_a_mistake_in_a_table_is_named_with_its_line(
    text: str, code: str, where: str, tmp_path: Path
):
    corpus = Words({"train": write(tmp_path / "t.csv", text)})
    with user_error(code, where=where):
        corpus.utterances("train")


def test_columns_without_use_are_reported_with_the_nearest(tmp_path: Path):
    table = write(tmp_path / "t.csv", "path,label,speeker\na.wav,go,x\n")
    (finding,) = Words({"train": table}).findings("train")
    assert finding.code == "unknown-key" and not finding.certain
    assert "'speeker'" in finding.what and "'speaker'" in str(finding.fix)


def test_a_table_of_another_format_is_refused(tmp_path: Path):
    with user_error("file-malformed", where="t.xlsx"):
        Words({"train": write(tmp_path / "t.xlsx", "x")}).utterances("train")


def test_a_missing_table_is_a_problem_of_the_corpus(tmp_path: Path):
    (problem,) = Words({"train": tmp_path / "no.csv"}).problems()
    assert "no.csv" in problem


def test_a_malformed_flag_is_refused(tmp_path: Path):
    words = ["train", "-d", "er", "-p", str(tmp_path), "--manifest", "er=train.csv"]
    assert main(words) == 2


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ({}, "Don’t  stop, it’s 9 o'clock — señor!", "DON'T STOP IT'S 9 O'CLOCK SEÑOR"),
        ({"case": "lower", "accents": "strip"}, "Señor ÅBO", "senor abo"),
        ({"digits": "strip"}, "room 101b", "ROOM B"),
        ({"case": "keep", "punctuation": "keep"}, "Hi, 'you'!", "Hi, 'you'!"),
        ({}, "e\u0301tude", "ÉTUDE"),
    ],
)
def test_text_is_normalised_by_the_rule(rule: dict[str, str], text: str, expected: str):
    assert TextRule.from_settings(rule, "text")(text) == expected


@pytest.mark.parametrize(
    ("rule", "code"), [({"casing": "upper"}, "unknown-key"), ({"case": "title"}, "invalid-value")]
)
def test_an_unknown_rule_is_refused(rule: dict[str, str], code: str):
    with user_error(code, where="text"):
        TextRule.from_settings(rule, "text")


def test_segments_may_be_json_objects_or_an_rttm_file(tmp_path: Path):
    rttm = (
        "SPEAKER rec 1 0.50 1.50 <NA> <NA> bob <NA> <NA>\nSPEAKER rec 1 0.00 1.00 <NA> <NA> ann\n"
    )
    write(tmp_path / "r.rttm", rttm)
    objects = (
        '[{"speaker": "ann", "start": 0, "end": 1}, {"speaker": "bob", "start": 0.5, "end": 2}]'
    )
    rows = [
        {"id": "rec", "path": "a.wav", "duration": 2.0, "rttm": "r.rttm"},
        {"id": "other", "path": "a.wav", "duration": 2.0, "segments": objects},
    ]
    table = json_lines(tmp_path, rows)
    first, second = RecordingTable({"train": table, "test": table}).utterances("test")
    assert sorted(first.labels["segments"]) == sorted(second.labels["segments"])
    assert sorted(second.labels["segments"]) == [[0, 0.0, 1.0], [1, 0.5, 2.0]]


def test_a_recording_with_more_speakers_than_the_head_has_is_refused(tmp_path: Path):
    rows = [{"path": "a.wav", "duration": 2, "segments": [[s, 0, 1] for s in "abc"]}]
    table = json_lines(tmp_path, rows)
    with user_error("invalid-value", where="line 1$"):
        RecordingTable({"train": table}).utterances("train")
    assert RecordingTable({"train": table}, num_speakers=3).utterances("train")


def speakers_of(folder: Path, header: str, *rows: str) -> Corpus:
    table = folder / "train.csv"
    table.write_text("\n".join([header, *rows]) + "\n")
    manifests = dict.fromkeys(("train", "dev", "test"), str(table))
    return corpus_of("sid", **{"sid.downstream_expert.datarc.manifests": manifests})


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("path,speaker", ["a.wav,ann", "b.wav,bob"]),
        ("path,label", ["a.wav,ann", "b.wav,bob"]),
        ("path,label,speaker", ["a.wav,ann,ann", "b.wav,bob,bob"]),
        ("path,label,speaker", ["a.wav,ann,", "b.wav,,bob"]),
    ],
)
def test_sid_takes_speaker_or_label(header: str, rows: list[str], tmp_path: Path) -> None:
    corpus = speakers_of(tmp_path, header, *rows)
    first, second = corpus.utterances("train")
    assert [first.labels["class"], second.labels["class"]] == ["ann", "bob"]
    assert corpus.speaker(first.id, first.labels) == "ann"
    assert corpus.label_space() == {"classes": ["ann", "bob"]}
    assert corpus.findings("train") == []


@pytest.mark.parametrize(
    ("header", "row", "code", "where"),
    [
        ("path,label,speaker", "a.wav,ann,bob", "corpus-inconsistent", r"train\.csv, line 2$"),
        ("path,label,speaker", "a.wav,,\nb.wav,bob,bob", "corpus-malformed", r"\.csv, line 2$"),
        ("path,label", "a.wav,\nb.wav,bob", "corpus-malformed", r"\.csv, line 2$"),
        ("path,text", "a.wav,ann", "corpus-malformed", r"train\.csv$"),
    ],
)
def test_sid_refuses_rows_without_one_speaker(
    header: str, row: str, code: str, where: str, tmp_path: Path
) -> None:
    with user_error(code, where=where):
        speakers_of(tmp_path, header, row).utterances("train")
