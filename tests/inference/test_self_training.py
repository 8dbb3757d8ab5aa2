"""From the command line: the transcripts of a run train another one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from s3prl_mtl.cli.main import main

DEMO = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"


@pytest.mark.slow
def test_the_output_of_predict_is_training_data(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    flags = ["-u", "hubert_tiny", "-d", "asr", "-c", str(DEMO), "--data", str(tiny_corpus)]
    flags += ["--cache_dir", str(manifest_cache), "--device", "cpu", "--steps", "3"]
    assert main(["train", *flags, "-p", str(tmp_path / "teacher")]) == 0
    folder = tiny_corpus / "fluent_speech_commands_dataset"
    pseudo = tmp_path / "labels" / "pseudo.jsonl"
    pseudo.parent.mkdir()
    words = ["predict", str(tmp_path / "teacher"), os.path.relpath(folder), "-o", str(pseudo)]
    assert main(words) == 0
    assert main(words) == 2, "not overwritten"
    lines = [json.loads(line) for line in pseudo.read_text().splitlines()]
    assert [line["file"] for line in lines] == sorted(map(str, folder.rglob("*.wav")))
    lines = lines[:5]
    for number, line in enumerate(lines):
        assert 0 < line["asr"]["confidence"] <= 1
        # A head of three steps has nothing but blanks.
        line["asr"]["text"] = line["asr"]["text"] or "TURN ON"
        line["asr"]["confidence"] = number / 4
    pseudo.write_text("".join(json.dumps(line) + "\n" for line in lines))
    datarc = "asr.downstream_expert.datarc"
    override = f"{datarc}.pseudo_labels={pseudo},,{datarc}.pseudo_confidence=0.5"
    student = tmp_path / "student"
    assert main(["train", *flags, "-o", override, "-p", str(student)]) == 0
    log = (student / "log.txt").read_text().splitlines()
    (used,) = (line for line in log if str(pseudo) in line and "datarc" not in line)
    assert re.search(rf"\basr\b.* 3 .*{re.escape(str(pseudo))}.* 2 ", used)
