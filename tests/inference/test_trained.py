"""Predictions of a trained run: without its corpora, equal to those of the evaluation."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import s3prl_mtl
from s3prl_mtl.cli.main import main
from s3prl_mtl.config import build_config, parse_tasks
from s3prl_mtl.data import read_audio
from s3prl_mtl.inference.audio_input import SILENCE
from s3prl_mtl.inference.loading import load_run
from s3prl_mtl.metrics import decide_speech, find_slots, without_slots
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.mistakes import user_error

SMALL_HEADS = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"
SECONDS_A_FRAME = 0.01


@pytest.fixture(scope="module")
def runner(
    tiny_corpus: Path, manifest_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> MultiTaskRunner:
    """A run of nine tasks, a few steps old, saved in its folder."""
    settings = {
        "downstream": parse_tasks("all"),
        "data": str(tiny_corpus),
        "cache_dir": str(manifest_cache),
        "upstream.name": "hubert_tiny",
        "device": "cpu",
        "runner.total_steps": 20,
        "runner.test_first": False,
        "runner.test_last": False,
    }
    config = build_config(files=[SMALL_HEADS], flags=settings)
    runner = MultiTaskRunner(config, tmp_path_factory.mktemp("run"))
    runner.train()
    return runner


@pytest.fixture(scope="module")
def trained(runner: MultiTaskRunner) -> s3prl_mtl.TrainedRun:
    return s3prl_mtl.load(runner.folder, device="cpu")


def evaluated(runner: MultiTaskRunner, task: str) -> tuple[list[Any], dict[str, list[Any]]]:
    """The cuts of a task's test split, and what its expert recorded of them one by one."""
    runner.encoder.set_training(False)
    expert = runner.tasks[task].expert.eval()
    split = runner.tasks[task].test_splits[0]
    records: dict[str, list[Any]] = defaultdict(list)
    expert.prepare(split)
    with torch.no_grad():
        for wavs, *others in expert.get_dataloader(split):
            expert(split, runner.encoder.features(wavs), *others, records=records)
    return list(expert._split_cuts[split]), records


def files_of(cuts: list[Any]) -> list[str]:
    return [str(cut.recording.sources[0].source) for cut in cuts]


@pytest.mark.parametrize("task", ["ks", "sid", "er", "ic"])
def test_classes_are_those_of_the_evaluation(runner, trained, task: str):
    cuts, records = evaluated(runner, task)
    # The cuts of silence are a random second of a longer file.
    whole = [i for i, cut in enumerate(cuts) if cut.start == 0 and cut.duration < 1.5]
    whole = whole if task == "ks" else list(range(len(cuts)))
    said = trained.predict([files_of(cuts)[i] for i in whole], [task])
    assert len(whole) > 2
    expert = runner.tasks[task].expert
    for i, answer in zip(whole, said, strict=True):
        for (label, known), number in zip(
            expert.answers.items(), records["hypothesis"][i], strict=True
        ):
            assert answer[task][label] == list(known)[number]
        assert 0 < answer[task]["probability"] <= 1


def test_texts_are_those_of_the_evaluation(runner, trained):
    for task in ("asr", "pr", "sf"):
        cuts, records = evaluated(runner, task)
        said = [answer[task] for answer in trained.predict(files_of(cuts), [task])]
        texts = runner.tasks[task].expert.hypotheses(records["frame_tokens"])
        for written, answer in zip(texts, said, strict=True):
            if task == "asr":
                assert answer["text"] == written.replace(" ", "").replace("|", " ").strip()
            elif task == "pr":
                assert answer["phones"] == written.split()
            else:
                slots = [(slot["slot"], slot["value"]) for slot in answer["slots"]]
                assert slots == find_slots(written)
                assert answer["text"] == without_slots(written)


def test_embeddings_and_their_scores_are_those_of_the_evaluation(runner, trained):
    cuts, records = evaluated(runner, "sv")
    embeddings = dict(records["embeddings"])
    files = files_of(cuts)
    for cut, answer in zip(cuts, trained.predict(files, ["sv"]), strict=True):
        found = torch.tensor(answer["sv"]["embedding"])
        torch.testing.assert_close(found, embeddings[cut.id], rtol=1e-4, atol=1e-5)
    expected = float(embeddings[cuts[0].id] @ embeddings[cuts[1].id])
    assert trained.verify(files[0], files[1]) == pytest.approx(expected, abs=1e-5)
    assert trained.verify(files[0], files[0]) == pytest.approx(1.0, abs=1e-5)


def test_segments_are_those_of_the_evaluation(runner, trained):
    cuts, records = evaluated(runner, "sd")
    files = [str(cut.recording.sources[0].source) for cut in cuts]
    decision = runner.tasks["sd"].expert.decision
    for (_, _, probabilities), answer in zip(
        records["recordings"], trained.predict(files, ["sd"]), strict=True
    ):
        expected = decide_speech(
            probabilities, decision["threshold"], int(decision["median_filter"])
        )
        frames = np.zeros_like(expected)
        for segment in answer["sd"]["segments"]:
            start, end = (round(segment[key] / SECONDS_A_FRAME) for key in ("start", "end"))
            assert 0 <= start < end
            frames[start:end, segment["speaker"]] = 1
        assert np.array_equal(frames, expected)
        assert expected.any(), "nobody speaks: nothing was compared"


def test_one_pass_of_the_encoder_serves_all_tasks(trained, tiny_corpus: Path, monkeypatch):
    passes = []
    encode = trained._encoder.upstream.forward
    monkeypatch.setattr(
        trained._encoder.upstream, "forward", lambda wavs: passes.append(len(wavs)) or encode(wavs)
    )
    files = sorted(tiny_corpus.glob("IEMOCAP_full_release/Session1/sentences/wav/*/*.wav"))[:3]
    answers = trained.predict(files)
    assert [set(answer) for answer in answers] == [set(trained.tasks)] * 3
    assert len(passes) == 1
    assert passes[0] == 9, "as it is, 3 dB softer for ks, and without silences for sv"
    json.dumps(answers)


def test_waveforms_may_have_any_rate(trained, tiny_corpus: Path):
    path = next(tiny_corpus.rglob("Session1/sentences/wav/*/*.wav"))
    wave = read_audio(path)
    assert trained.predict([wave], ["asr", "er"]) == trained.predict([path], ["asr", "er"])
    doubled = wave.repeat_interleave(2)
    assert len(trained.features([doubled], sample_rate=32_000)[0]) == len(
        trained.features([wave])[0]
    )


def test_the_corpora_are_not_needed(runner, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("SUPERB_DATA", raising=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(runner.folder / "states-20.ckpt", elsewhere)
    run = s3prl_mtl.load(elsewhere, tasks=["ks", "sd"], device="cpu")
    assert run.tasks == ["ks", "sd"] and run.step == 20
    assert "yes" in run.labels["ks"]["classes"]
    best = next(runner.folder.glob("*/*-best.ckpt"))
    assert s3prl_mtl.load(best, device="cpu").tasks == [best.parent.name]


def test_absent_tasks_and_files_are_named(trained, runner, tmp_path: Path):
    with user_error("unknown-name", where="^tasks$", fix="'asr'") as caught:
        trained.predict([torch.zeros(16000)], ["ask"])
    assert "'ask'" in caught.value.what
    with user_error("unknown-name", where=str(runner.folder)) as caught:
        s3prl_mtl.load(runner.folder, tasks=["nope"])
    assert "'nope'" in caught.value.what
    with user_error("file-missing", where=f"^{tmp_path / 'nowhere.wav'}$"):
        trained.predict([tmp_path / "nowhere.wav"], ["ks"])


def test_the_command_writes_a_line_for_every_file(runner, tiny_corpus, tmp_path, capsys):
    wavs = sorted(tiny_corpus.glob("Libri2Mix/**/*.wav"))[:2]
    text = tmp_path / "notes.wav"
    text.write_text("this is not audio")
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(100, dtype=np.float32), 16_000)
    words = ["predict", str(runner.folder), "--task", "asr,sd,sv", "--device", "cpu"]
    files = [str(file) for file in (wavs[0], text, short, wavs[1])]
    rttm = tmp_path / "who.rttm"
    code = main([*words, "--rttm", str(rttm), "--against", str(wavs[0]), *files])
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert code == 2 and re.search(r"\b2 of 4\b", shown.err)
    assert [line["file"] for line in lines] == files
    assert str(text) in lines[1]["error"]
    assert " 100 " in lines[2]["error"] and str(short) in lines[2]["error"]
    assert lines[0]["sv"]["score"] == pytest.approx(1.0, abs=1e-5)
    assert set(lines[3]) == {"file", "asr", "sd", "sv"}
    marks = [line.split() for line in rttm.read_text().splitlines()]
    assert len(marks) == sum(len(lines[i]["sd"]["segments"]) for i in (0, 3))
    for mark in marks:
        assert mark[0] == "SPEAKER" and float(mark[3]) >= 0 and float(mark[4]) > 0


def test_a_closed_pipe_ends_the_command_without_an_error(runner, tiny_corpus: Path, tmp_path: Path):
    file = next((tiny_corpus / "speech_commands_v0.01" / "yes").glob("*.wav"))
    command = [sys.executable, "-m", "s3prl_mtl", "predict", runner.folder, "--task", "ks,sd"]
    rttm = tmp_path / "who.rttm"
    rttm.write_text("of before\n")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        ended = subprocess.run(
            [*command, "--rttm", rttm, file], stdout=gone, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr and "BrokenPipe" not in ended.stderr
    assert rttm.read_text() == "of before\n"


def test_a_flag_without_its_task_is_refused(runner, tmp_path, capsys):
    words = ["predict", str(runner.folder), "--task", "ks", "--rttm", str(tmp_path / "x"), "a.wav"]
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert "--rttm" in shown and re.search(r"\bsd\b", shown)


SOUND = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
NAN = np.where(np.arange(len(SOUND)) == 5, np.nan, SOUND)
UNUSABLE = {
    "short.wav": (SOUND[:399], 16_000, "audio-too-short", r"\b399\b"),
    "short_at_8_kHz.wav": (SOUND[:100], 8_000, "audio-too-short", r"\b200\b"),
    "empty.wav": (SOUND[:0], 16_000, "audio-unreadable", ""),
    "nan.wav": (NAN, 16_000, "audio-unreadable", ""),
    "folder.wav": (None, 0, "audio-unreadable", ""),
    "text.wav": ("this is not audio", 0, "audio-unreadable", ""),
    "no_bytes.wav": ("", 0, "audio-unreadable", ""),
    "missing.wav": (None, -1, "file-missing", ""),
}
USABLE = {
    "one_frame.wav": (SOUND[:400], 16_000),
    "stereo.wav": (np.stack([SOUND, SOUND], axis=1), 16_000),
    "at_8_kHz.wav": (SOUND[::2], 8_000),
    "silence.wav": (np.zeros_like(SOUND), 16_000),
}


@pytest.fixture
def folder_of_audio(tmp_path: Path) -> Path:
    """One file of each of the above."""
    for name, (content, rate, *_) in (UNUSABLE | USABLE).items():
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content)
        elif content is not None:
            soundfile.write(path, content, rate, subtype="FLOAT")
        elif rate == 0:
            path.mkdir()
    return tmp_path


def test_every_file_that_cannot_be_used_is_named_beside_the_answers_of_the_others(
    runner, trained, folder_of_audio: Path, capsys
):
    files = [str(folder_of_audio / name) for name in UNUSABLE | USABLE]
    for tasks in ("sv", "ks,sv"):
        code = main(["predict", str(runner.folder), "--task", tasks, "--device", "cpu", *files])
        shown = capsys.readouterr()
        lines = {line["file"]: line for line in map(json.loads, shown.out.splitlines())}
        assert code == 2 and f"{len(UNUSABLE)} of {len(files)}" in shown.err
        assert files[0] in "".join(shown.err.split()), "the first of them is the place of the error"
        for name, (_, _, _, reason) in UNUSABLE.items():
            line = lines[str(folder_of_audio / name)]
            assert re.search(reason, line["error"]) and line["file"] in line["error"]
            assert set(line) == {"file", "error"}
        for name in USABLE:
            line = lines[str(folder_of_audio / name)]
            assert set(line) == {"file", *tasks.split(",")}
            assert np.isfinite(line["sv"]["embedding"]).all()
        # Two equal channels are one.
        stereo = lines[str(folder_of_audio / "stereo.wav")]["sv"]["embedding"]
        mono = trained.embedding(torch.from_numpy(SOUND))
        torch.testing.assert_close(torch.tensor(stereo), mono, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(UNUSABLE))
def test_python_names_the_file_that_cannot_be_used(trained, folder_of_audio: Path, name: str):
    file = folder_of_audio / name
    for call in (
        lambda: trained.predict([folder_of_audio / "stereo.wav", file], ["sv"]),
        lambda: trained.verify(folder_of_audio / "stereo.wav", file),
        lambda: trained.features([file]),
    ):
        with user_error(UNUSABLE[name][2], where=f"^{file}$") as caught:
            call()
        assert re.search(UNUSABLE[name][3], caught.value.what)


def test_silence_has_no_speaker(runner, trained, folder_of_audio: Path, capsys):
    sound, silence = folder_of_audio / "stereo.wav", folder_of_audio / "silence.wav"
    for first, second in ((sound, silence), (silence, sound)):
        with user_error("audio-unreadable", where=r"silence\.wav$"):
            trained.verify(first, second)
    words = ["predict", str(runner.folder), "--task", "sv", "--device", "cpu"]
    assert main([*words, "--against", str(sound), str(silence), str(sound)]) == 0
    unheard, heard = map(json.loads, capsys.readouterr().out.splitlines())
    assert "score" not in unheard["sv"] and unheard["sv"]["no_score"] == SILENCE
    assert heard["sv"]["score"] == pytest.approx(1.0, abs=1e-5) and "no_score" not in heard["sv"]
    for file, reason in ((silence, SILENCE), (folder_of_audio / "short.wav", "399")):
        assert main([*words, "--against", str(file), str(sound)]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        told = "".join(shown.err.split())
        assert "".join(reason.split()) in told and f"--against{file}" in told


def test_speakers_are_compared_at_any_rate(trained):
    wave = torch.from_numpy(SOUND)
    known = trained.embedding(wave.repeat_interleave(2), sample_rate=32_000)
    (answer,) = trained.predict([wave.repeat_interleave(2)], ["sv"], sample_rate=32_000)
    assert torch.equal(known, torch.tensor(answer["sv"]["embedding"]))
    assert not torch.equal(known, trained.embedding(wave.repeat_interleave(2)))
    assert trained.verify(wave, wave, sample_rate=8_000) == pytest.approx(1.0, abs=1e-5)


def test_a_gpu_that_is_not_there_is_refused(runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with user_error("device-unavailable", where="^--device$") as caught:
            s3prl_mtl.load(runner.folder, ["ks"], device)
        assert f"'{device}'" in caught.value.what


def test_an_absent_run_is_named_with_the_caller(tmp_path: Path, capsys):
    absent = tmp_path / "absent"
    assert main(["predict", "--verbose", str(absent), "x.wav"]) == 2
    assert "[checkpoint-missing]" in capsys.readouterr().err
    for where in ("predict", "load"):
        with user_error("checkpoint-missing", where=f"^{where} {absent}$"):
            load_run(absent, None, "cpu", where)


def test_a_waveform_shorter_than_a_frame_is_refused(trained):
    for task in ("ks", "sv"):
        with user_error("audio-too-short", where="a waveform") as caught:
            trained.predict([torch.zeros(100)], [task])
        assert " 100 " in caught.value.what
