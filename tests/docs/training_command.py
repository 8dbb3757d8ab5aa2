"""Complete training commands of the documentation so that they run quickly in a test."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.pages import ROOT, Command

# Also behind `torchrun -m`.
TRAINING = re.compile(r"\bs3prl[-_]mtl (train|evaluate) ")
OFFICIAL = ("hubert", "hubert_base")
SMALL_HUBERT = ROOT / "tests" / "fixtures" / "hubert" / "base_style.pt"
DEMO = ROOT / "run_scripts" / "demo.yaml"
BRANCH_CONFIG = "s3prl/downstream/multitask.yaml"
STEPS = "2"
# One evaluation, at the end, is enough.
SETTINGS = "runner.test_first=false,,runner.log_step=1,,runner.eval_step=1000,,device=cpu"
ENCODERS = {
    "hf:microsoft/wavlm-base": "hf:wavlm",
    "hf:microsoft/wavlm-base-plus": "hf:wavlm",
    "hf:path/to/folder": "hf:wavlm",
}

DOWNLOADED = {"wavlm_base_plus": ["wavlm_local", "-k", "wavlm.pt"]}
"""Upstreams that download a checkpoint, and equivalents of the same module that do not."""


def runnable(command: Command, corpora: Path) -> tuple[list[str], list[str]]:
    """The words before `s3prl-mtl` and after it, changed so that the command runs in seconds.

    All flags are kept. `...` is replaced with the missing encoder and tasks, an official encoder
    with a small checkpoint of the same format, folders of corpora with the tiny corpus, and the
    number of steps with 2; heads have the sizes of the demo unless the command sets them.
    """
    words = [word.replace("DATA/", f"{corpora}/") for word in command.words]
    place = next(n for n, word in enumerate(words) if word in ("s3prl-mtl", "s3prl_mtl"))
    launcher, mode, words = words[:place], words[place + 1], words[place + 2 :]
    if "..." in words:
        words.remove("...")
        words = _completed(words)
    words = [re.sub(r"s3prl:/[\w/]+/my_\w+", "s3prl:./my_task", word) for word in words]
    words = [ENCODERS.get(word, word) for word in words]
    words = [word.replace("/mnt/librispeech", f"{corpora}/LibriSpeech") for word in words]
    if "--data" in words and not Path(words[words.index("--data") + 1]).is_dir():
        words[words.index("--data") + 1] = str(corpora)
    if "-e" in words:
        return launcher, [mode, *words]
    if words[words.index("-u") + 1] in OFFICIAL and "-k" not in words:
        words += ["-k", str(SMALL_HUBERT)]
    if "--steps" in words:
        words[words.index("--steps") + 1] = STEPS
    else:
        words += ["--steps", STEPS]
    tasks = words[words.index("-d") + 1] if "-d" in words else ""
    settings = SETTINGS
    for name in re.findall(r"s3prl:(\w+)(?=,|$)", tasks):
        # The published package of s3prl has no config files.
        if f"s3prl:{name}.config=" not in " ".join(words):
            settings += f",,s3prl:{name}.config=my/{name}.yaml"
    if "-o" in words:
        settings += ",," + words[words.index("-o") + 1]
        words[words.index("-o") + 1] = settings
    else:
        words += ["-o", settings]
    if "multitask.yaml" not in " ".join(words):
        # The branch's checkpoint in the tests has the heads of the branch's config.
        of_branch = "-i" in words and "states-200000.ckpt" in words
        words = ["-c", BRANCH_CONFIG if of_branch else str(DEMO), *words]
    return launcher, [mode, *words]


def _completed(words: list[str]) -> list[str]:
    """Replace `...` with an encoder and the tasks that the other words name."""
    named = sorted(set(re.findall(r"(s3prl:\w+|\b[a-z]+)\.\w+[.=]", " ".join(words))))
    tasks = [name for name in named if name.startswith("s3prl:") or name == "asr"]
    chosen = "all" if {"--placement", "-a"} & set(words) else ",".join(tasks) or "ks,asr"
    words = words if "-d" in words else ["-d", chosen, *words]
    return words if "-u" in words else ["-u", "hubert", *words]
