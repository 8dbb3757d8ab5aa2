"""From the command line: the transcripts of a run train another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s3prl_mtl.cli.main import main

DEMO = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"


@pytest.mark.slow
def test_the_output_of_predict_is_training_data(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["-u", "hubert_tiny", "-d", "asr", "-c", str(DEMO), "--data", str(tiny_corpus)]
    flags += ["--cache_dir", str(manifest_cache), "--device", "cpu", "--steps", "3"]
    assert main(["train", *flags, "-p", str(tmp_path / "teacher")]) == 0
    audio = sorted(map(str, (tiny_corpus / "fluent_speech_commands_dataset").rglob("*.wav")))[:5]
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "teacher"), *audio]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == audio
    for number, line in enumerate(lines):
        assert 0 < line["asr"]["confidence"] <= 1
        # A head of three steps has nothing but blanks.
        line["asr"]["text"] = line["asr"]["text"] or "TURN ON"
        line["asr"]["confidence"] = number / 4
    pseudo = tmp_path / "pseudo.jsonl"
    pseudo.write_text("".join(json.dumps(line) + "\n" for line in lines))
    datarc = "asr.downstream_expert.datarc"
    override = f"{datarc}.pseudo_labels={pseudo},,{datarc}.pseudo_confidence=0.5"
    student = tmp_path / "student"
    assert main(["train", *flags, "-o", override, "-p", str(student)]) == 0
    log = (student / "log.txt").read_text()
    assert f"asr: 3 pseudo-labelled utterances of {pseudo}; left out: 2 below" in log
