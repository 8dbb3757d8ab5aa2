"""Files that the pages require besides the corpora: files of s3prl, encoders, runs."""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers
import yaml

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.cli.main import main
from tests.docs.training_command import DEMO, SMALL_HUBERT
from tests.mtl_branch.branch_config import write_small
from tests.s3prl_compat import corpora as of_s3prl
from tests.s3prl_compat.conftest import CONFIG, EXPERT, TONES
from tests.upstreams.test_huggingface import make as make_huggingface
from tests.upstreams.zoo_checkpoints import make_checkpoint

BRANCH_TASKS = ("asr", "pr", "ks", "sd")
STFT = {"n_fft": 512, "hop_length": 160, "win_length": 400, "window": "hann", "center": True}


def add_recordings(folder: Path, corpus: Path) -> None:
    speech = next((corpus / "LibriSpeech" / "test-clean").rglob("*.flac"))
    for name in ("speech.wav", "one.wav", "two.wav", "some.wav"):
        shutil.copy(speech, folder / name)
    shutil.copytree(speech.parent, folder / "recordings")
    for split, name in (("train", "train-clean-100"), ("dev", "dev-clean"), ("test", "test-clean")):
        shutil.copytree(corpus / "LibriSpeech" / name, folder / "audio" / split)


def add_noise(folder: Path) -> None:
    """A folder of noise and one of impulse responses, in place of MUSAN and simulated rooms."""
    generator = np.random.default_rng(0)
    for name, seconds in (("musan/noise", 4.0), ("rirs", 0.3)):
        (folder / name).mkdir(parents=True)
        noise = 0.1 * generator.standard_normal(int(16000 * seconds))
        decay = np.exp(-np.arange(len(noise)) / 800) if name == "rirs" else 1.0
        soundfile.write(folder / name / "one.wav", noise * decay, 16000)


def add_tables(folder: Path, corpus: Path) -> None:
    """Tables of `er` as CSV and of `asr` as JSON lines."""
    splits = {"train": "train", "dev": "dev", "test": "test"}
    splits |= {"dev-clean": "dev", "test-clean": "test"}
    for task, name in (("er", "er"), ("asr", "a")):
        assert main(["manifest", task, "--data", str(corpus), "-o", str(folder / name)]) == 0
        for split, new in splits.items():
            path = folder / name / f"{split}.csv"
            if not path.is_file():
                continue
            if task == "er":
                # The new file is one folder up.
                rows = re.sub(r"(?m)(^|,)\.\./", r"\1", path.read_text())
                (folder / f"{'abc'[['train', 'dev', 'test'].index(new)]}.csv").write_text(rows)
                continue
            with path.open(newline="") as file:
                lines = [f"{json.dumps(row)}\n" for row in csv.DictReader(file)]
            (folder / name / f"{new}.jsonl").write_text("".join(lines))


def add_tasks_of_s3prl(folder: Path, corpus: Path) -> None:
    """A third-party expert, the configs that s3prl's package lacks, a checkout of `ctc`."""
    task = folder / "my_task"
    task.mkdir()
    for name, text in (("expert.py", EXPERT), ("tones.py", TONES), ("config.yaml", CONFIG)):
        (task / name).write_text(text)
    for name in ("emotion", "asr"):
        settings, splits = of_s3prl.BUILDERS[name](corpus, folder)
        if name == "asr":
            settings["datarc"]["test-other"] = ["test-other"]
            of_s3prl._lengths(corpus, folder, "test-other")
        of_s3prl.write_config(folder / "my" / f"{name}.yaml", settings, splits or None)
    settings, splits = of_s3prl.ctc(corpus, folder)
    for name in ("libriphone", "snips"):
        of_s3prl.write_config(folder / "downstream" / "ctc" / f"{name}.yaml", settings, splits)


def add_branch_config(folder: Path, corpus: Path) -> Path:
    """The branch's `multitask.yaml` at the path used by the page."""
    path = folder / "s3prl" / "downstream" / "multitask.yaml"
    path.parent.mkdir(parents=True)
    return write_small(path, corpus)


def add_stft(folder: Path) -> None:
    (folder / "stft.yaml").write_text(yaml.safe_dump({"spectrogram": {**STFT, "log": True}}))


def add_encoders(folder: Path) -> None:
    shutil.copy(SMALL_HUBERT, folder / "my_hubert.pt")
    make_checkpoint("wav2vec2_local", folder / "converted.pt")
    make_checkpoint("wavlm_local", folder / "wavlm.pt")
    make_huggingface("wavlm", folder / "wavlm")
    assert transformers.AutoConfig.from_pretrained(folder / "wavlm").model_type == "wavlm"


def add_branch_run(folder: Path, config: Path) -> None:
    """A checkpoint in the format of the branch, and a folder of heads of s3prl's trainer."""
    settings = "device=cpu,,runner.total_steps=1,,runner.test_last=false"
    words = ["-c", str(config), "-u", "hubert", "-k", str(SMALL_HUBERT), "-s", "layer_results"]
    run = folder / "branch"
    assert main([*words, "-d", ",".join(BRANCH_TASKS), "-p", str(run), "-o", settings]) == 0
    saved = checkpoints.load(run / "states-1.ckpt")
    states = {
        "Step": 200_000,
        "Args": argparse.Namespace(
            upstream="hubert",
            upstream_ckpt=str(SMALL_HUBERT),
            upstream_model_config=None,
            upstream_feature_selection="layer_results",
            upstream_trainable=True,
            downstream=",".join(BRANCH_TASKS),
            seed=1337,
        ),
        "Config": yaml.safe_load(config.read_text()),
        "Upstream": OrderedDict(saved.upstream),
        "Featurizer": OrderedDict(saved.featurizer),
        "WorldSize": 1,
    }
    for task in BRANCH_TASKS:
        states[task] = OrderedDict(saved.tasks[task].head)
        states[f"Epoch.{task}"] = 1
    torch.save(states, folder / "states-200000.ckpt")
    # The page uses these heads with our own defaults, not with the branch's config.
    words = ["-u", "hubert_base", "-k", str(SMALL_HUBERT), "-c", str(DEMO)]
    heads = folder / "heads"
    assert main([*words, "-d", "asr,pr,ks", "-p", str(heads), "--steps", "1", "-o", settings]) == 0
    words = ["export", str(heads), "--format", "s3prl", "-o", str(folder / "DIR_OF_HEADS")]
    assert main(words) == 0


PREPARED = {
    "docs/upstreams.md": ("encoders", "stft", "branch"),
    "README.md": ("encoders", "tasks", "noise", "tables"),
    "docs/data.md": ("noise",),
    "docs/own-data.md": ("tables",),
    "docs/s3prl-experts.md": ("tasks",),
    "docs/from-s3prl.md": ("tasks",),
}
"""Prerequisites of each page."""
