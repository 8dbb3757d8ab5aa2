"""Options of transcripts in `load`, `predict` and `evaluate`: decoder, n-best lists, times."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import s3prl_mtl
from s3prl_mtl.cli.main import main
from s3prl_mtl.config import build_config
from s3prl_mtl.inference.transcribing import parse_decoder
from s3prl_mtl.tracking.recorder import read_metrics
from s3prl_mtl.training.run_record import RunRecord
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.downstream_plugins.ngram import count_bigrams, write_arpa
from tests.mistakes import user_error

SMALL_HEADS = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"


@pytest.fixture(scope="module")
def made(tiny_corpus: Path, manifest_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of asr, pr and ks, a few steps old, saved in its folder."""
    settings = {
        "downstream": ["asr", "pr", "ks"],
        "data": str(tiny_corpus),
        "cache_dir": str(manifest_cache),
        "upstream.name": "hubert_tiny",
        "device": "cpu",
        "runner.total_steps": 3,
        "runner.test_first": False,
        "runner.test_last": False,
    }
    config = build_config(files=[SMALL_HEADS], flags=settings)
    runner = MultiTaskRunner(config, tmp_path_factory.mktemp("run"))
    runner.train()
    return runner.folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def files(tiny_corpus: Path, tmp_path: Path) -> dict[str, str]:
    """A model of the training texts, and its words; relative to the working folder of a test."""
    texts = [
        line.split(" ", 1)[1]
        for file in sorted((tiny_corpus / "LibriSpeech/train-clean-100").rglob("*.trans.txt"))
        for line in file.read_text().splitlines()
    ]
    write_arpa(tmp_path / "lm.arpa", *count_bigrams(texts))
    words = sorted({word for text in texts for word in text.split()})
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n")
    return {"lm": str(tmp_path / "lm.arpa"), "lexicon": str(tmp_path / "words.txt")}


@pytest.fixture
def audio(tiny_corpus: Path) -> list[str]:
    found = sorted((tiny_corpus / "LibriSpeech/test-clean").rglob("*.flac"))
    return [str(file) for file in found[:3]]


def overrides(files: dict[str, str], **settings: Any) -> str:
    pairs = {**files, **settings}.items()
    return ",,".join(f"asr.downstream_expert.decoder.{key}={value}" for key, value in pairs)


def test_words_are_those_of_the_lexicon_and_their_times_are_in_order(
    made: Path, files: dict[str, str], audio: list[str]
) -> None:
    words = set(Path(files["lexicon"]).read_text().split())
    # A head that hardly learned anything prefers blanks: a word has to be worth something.
    decoder = {**files, "beam": 20, "word_score": 20.0}
    trained = s3prl_mtl.load(
        made, ["asr", "pr", "ks"], device="cpu", decoder=decoder, nbest=3, timestamps=True
    )
    seconds = [len(s3prl_mtl.data.read_audio(file)) / 16_000 for file in audio]
    for answer, length in zip(trained.predict(audio), seconds, strict=True):
        asr, phones = answer["asr"], answer["pr"]
        assert asr["text"] and set(asr["text"].split()) <= words
        texts = [entry["text"] for entry in asr["nbest"]]
        assert texts[0] == asr["text"] and 2 <= len(set(texts)) == len(texts) <= 3
        assert [entry["word"] for entry in asr["times"]] == asr["text"].split()
        assert [entry["phone"] for entry in phones["times"]] == phones["phones"]
        for times in (asr["times"], phones["times"]):
            marks = [mark for entry in times for mark in (entry["start"], entry["end"])]
            assert marks == sorted(marks)
            assert all(0 <= mark <= length for mark in marks)
        assert "times" not in answer["ks"]


def test_times_do_not_depend_on_the_batch(made: Path, audio: list[str]) -> None:
    trained = s3prl_mtl.load(made, ["asr", "pr"], device="cpu", timestamps=True)
    together = trained.predict(audio)
    for answer, file in zip(together, audio, strict=True):
        (alone,) = trained.predict([file])
        assert alone["asr"]["times"] == answer["asr"]["times"]
        assert alone["pr"]["times"] == answer["pr"]["times"]


def test_answers_without_options_are_unchanged(made: Path, audio: list[str]) -> None:
    (answer,) = s3prl_mtl.load(made, device="cpu").predict(audio[:1])
    assert set(answer["asr"]) == {"text", "confidence"}
    assert set(answer["pr"]) == {"phones", "confidence"}


def test_predict_decodes_and_writes_time_marks(
    made: Path,
    files: dict[str, str],
    audio: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ctm = tmp_path / "words.ctm"
    flags = ["--decoder", "lm=lm.arpa,lexicon=words.txt,beam=20,word_score=20", "--nbest", "2"]
    command = ["predict", str(made), "--task", "asr", "--device", "cpu", *flags]
    assert main([*command, "--ctm", str(ctm), *audio]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(line["asr"]["nbest"]) for line in lines] == [2] * len(audio)
    marks = [line.split() for line in ctm.read_text().splitlines()]
    expected = [
        [Path(line["file"]).stem, "1", f"{entry['start']:.3f}", entry["word"]]
        for line in lines
        for entry in line["asr"]["times"]
    ]
    assert [[mark[0], mark[1], mark[2], mark[4]] for mark in marks] == expected
    assert all(float(mark[3]) > 0 for mark in marks)


def test_time_marks_are_those_of_phones_where_there_are_no_words(
    made: Path, audio: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ctm = tmp_path / "phones.ctm"
    command = ["predict", str(made), "--task", "pr", "--device", "cpu", "--ctm", str(ctm)]
    assert main([*command, *audio]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    phones = [phone for line in lines for phone in line["pr"]["phones"]]
    assert [line.split()[4] for line in ctm.read_text().splitlines()] == phones


@pytest.mark.parametrize(
    ("tasks", "options", "code", "where"),
    [
        (["asr"], {"nbest": 2}, "missing-option", "nbest"),
        (["ks"], {"timestamps": True}, "missing-option", "timestamps"),
        (["asr"], {"nbest": 0}, "invalid-value", "nbest"),
        (["pr"], {"decoder": {"lm": "a", "lexicon": "b"}}, "missing-option", "decoder"),
        (["asr"], {"decoder": {"lm": "a"}}, "missing-option", r"decoder\.lexicon"),
        (["asr"], {"decoder": {"bean": 1}}, "unknown-key", r"decoder\.bean"),
        (["asr"], {"decoder": {"lm": "a", "lexicon": "b"}}, "file-missing", r"decoder\.lexicon"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    made: Path, tasks: list[str], options: dict[str, Any], code: str, where: str
) -> None:
    with user_error(code, where):
        s3prl_mtl.load(made, tasks, device="cpu", **options)


def test_time_marks_need_a_task_with_times(
    made: Path, audio: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ctm = tmp_path / "out.ctm"
    assert main(["predict", str(made), "--task", "ks", "--ctm", str(ctm), *audio]) == 2
    assert not ctm.exists() and "timestamps" in capsys.readouterr().err


def test_settings_of_a_flag_have_types() -> None:
    found = parse_decoder("lm=a.arpa, lexicon=b.txt,beam=50,lm_weight=1.5,splits=null", "--decoder")
    assert found == {
        "lm": "a.arpa",
        "lexicon": "b.txt",
        "beam": 50,
        "lm_weight": 1.5,
        "splits": None,
    }
    for text in ("lm", "=3", "lm=a,,beam=2", "lm=[a"):
        with user_error("invalid-value", "--decoder"):
            parse_decoder(text, "--decoder")


def test_an_evaluation_reports_both_error_rates_and_leaves_the_run_as_it_is(
    run: Path, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = (run / "config.yaml").read_text()
    relative = {key: Path(path).name for key, path in files.items()}
    command = ["evaluate", "-e", str(run), "-d", "asr", "--device", "cpu", "-t", "asr:test-clean"]
    assert main(command) == 0
    without = json.loads((run / "results.json").read_text())["asr"]["test-clean"]
    assert main([*command, "-o", overrides(relative, word_score=20.0)]) == 0
    results = json.loads((run / "results.json").read_text())["asr"]["test-clean"]
    assert set(results) - set(without) == {"wer_lm"}
    assert {key: results[key] for key in without} == pytest.approx(without)
    assert results["wer_lm"] != results["wer"]
    assert (run / "config.yaml").read_text() == config
    (with_lm,) = {entry["conditions"] for entry in read_metrics(run) if entry["metric"] == "wer_lm"}
    assert "lm.arpa" in with_lm and RunRecord(run).conditions("asr") == with_lm


def test_a_run_resumes_with_a_decoder_whose_files_stay_outside_of_checkpoints(
    run: Path, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = {key: Path(path).name for key, path in files.items()}
    steps = "runner.total_steps=4,,runner.eval_step=4"
    decoder = overrides(relative, splits="[dev-clean]")
    command = ["train", "-e", str(run), "--device", "cpu", "-o", f"{steps},,{decoder}"]
    assert main(command) == 0
    results = json.loads((run / "results.json").read_text())["asr"]
    assert "wer_lm" in results["dev-clean"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not [m for m in metrics if m["split"] == "train" and m["metric"] == "wer_lm"]
    block = yaml.safe_load((run / "config.yaml").read_text())["asr"]["downstream_expert"]
    assert block["decoder"]["lm"] == files["lm"]  # An absolute path.
    saved = torch.load(run / "states-4.ckpt", weights_only=True)
    assert Path(files["lm"]).read_bytes()[:40] not in (run / "states-4.ckpt").read_bytes()
    assert saved is not None
    Path(files["lm"]).unlink()
    with user_error("file-missing", r"decoder\.lm"):
        s3prl_mtl.load(run, ["asr"], device="cpu")
    s3prl_mtl.load(run, ["asr"], device="cpu", decoder={"lm": None, "lexicon": None})


@pytest.mark.parametrize(
    ("pair", "code"),
    [("decoder.bean=3", "unknown-key"), ("decoder.beam=wide", "wrong-type")],
)
def test_wrong_keys_of_a_config_are_refused(tiny_corpus: Path, pair: str, code: str) -> None:
    with user_error(code, r"asr\.downstream_expert\.decoder\."):
        build_config(
            flags={"downstream": ["asr"], "data": str(tiny_corpus)},
            overrides=f"asr.downstream_expert.{pair}",
        )
