"""Run the commands and the Python blocks of a page in one folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path
from typing import Any

import pytest

from s3prl_mtl.cli.main import main
from tests.docs import not_run
from tests.docs.pages import ROOT, Block, Command
from tests.docs.training_command import DOWNLOADED, SMALL_HUBERT, TRAINING, runnable

QUICK = ("balancers", "export", "predict", "report", "results", "tasks", "upstreams")
"""Commands of s3prl_mtl that need no corpus and take seconds."""
SLOW_CALL = "check_task("
"""Call that takes half a minute in a Python block."""
PLACEHOLDERS = {"RUN", "OUT", "NAME"}


def is_not_run(line: str) -> bool:
    return any(line.startswith(beginning) for beginning in not_run.COMMANDS)


class Session:
    """Runs blocks in the working folder.

    Args:
        folder: the working folder.
        corpora: the tiny corpus.
        everything: also run commands that train, make corpora, install and check tasks.
        trained: a run, in place of the joint one of `s3prl-mtl demo`.
    """

    def __init__(self, folder: Path, corpora: Path, everything: bool, trained: Path) -> None:
        self.folder = folder
        self.corpora = corpora
        self.trained = trained
        self.everything = everything
        self.namespace: dict[str, Any] = {"__name__": "docs"}
        self.printed = ""
        self.ran: list[str] = []

    def python(self, block: Block) -> None:
        if SLOW_CALL in block.text and not self.everything:
            return
        script = self.folder / f"block_{block.line}.py"
        script.write_text(block.text, encoding="utf-8")
        self.namespace |= runpy.run_path(str(script), init_globals=self.namespace, run_name="docs")

    def command(self, command: Command) -> None:
        line = command.text
        if is_not_run(line) or "|" in line:
            return
        words = shlex.split(line, comments=True)
        if TRAINING.search(line):
            if self.everything:
                self._train(command)
        elif words[:2] == ["s3prl-mtl", "demo"]:
            demo = self.folder / ".demo"
            demo.mkdir(exist_ok=True)
            if not (demo / "corpus").exists():
                (demo / "corpus").symlink_to(self.corpora)
                shutil.copytree(self.trained, demo / "b1" / "seed0")
        elif words[0] == "s3prl-mtl":
            words = [path for word in words for path in sorted(glob(word)) or [word]]
            if self.everything or (words[1] in QUICK and not PLACEHOLDERS & set(words)):
                self._ours(words[1:])
        elif words[:2] == ["pip", "install"]:
            if self.everything:
                self._install(words[-1])
        elif words[:2] == ["python", "-m"] and words[2].endswith("_task.mini_corpus"):
            if self.everything:
                self._run(sys.executable, *words[1:])
        else:
            raise AssertionError(f"{command}: no rule to run this command")
        self.ran.append(line)

    def _train(self, command: Command) -> None:
        launcher, words = runnable(command, self.corpora)
        if not {"-n", "-p", "-e"} & set(words):
            # The lines of a block are alternatives that must not share the default name.
            words += ["-n", f"line_{len(self.ran)}"]
        if "-p" in words and words[words.index("-p") + 1] == "RUN":
            shutil.rmtree(self.folder / "RUN")  # in place of the one that other pages presuppose
        words = [part for word in words for part in DOWNLOADED.get(word, [word])]
        if not launcher:
            self._main(words)
            return
        assert launcher[0] == "torchrun", command
        port = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
        launch = [re.sub("^4$", "2", word) for word in launcher[1:]]
        self._run(
            sys.executable, "-m", "torch.distributed.run", *port, *launch, "s3prl_mtl", *words
        )

    def _ours(self, words: list[str]) -> None:
        known = {"mini": "tiny", "DATA": str(self.corpora)}
        words = [known.get(word, word) for word in words]
        if words[0] == "make-corpus":
            # Reuse the corpus of all tests: making it again would take long.
            shutil.copytree(self.corpora, self.folder / words[1], dirs_exist_ok=True)
        if "--data" in words and words[words.index("--data") + 1] == "DIR":
            words[words.index("--data") + 1] = str(self.corpora)
        if "--base" in words:
            words[words.index("--base") + 1] = str(SMALL_HUBERT)
        self._main(words)

    def _main(self, words: list[str]) -> None:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = main(words)
        self.printed = output.getvalue()
        assert code == 0, (words, self.printed)

    def _install(self, package: str) -> None:
        # A copy: building leaves files in the source.
        source = self.folder / "sources" / Path(package).name
        shutil.copytree(ROOT / package if package.startswith("./") else package, source)
        install(source, self.folder / "site")

    def _run(self, *words: str) -> None:
        variables = {"PYTHONPATH": f"{self.folder / 'site'}:{ROOT}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            words, env={**os.environ, **variables}, capture_output=True, text=True
        )
        self.printed = done.stdout
        assert done.returncode == 0, (words, done.stdout + done.stderr)

    def printed_json(self, block: Block) -> None:
        """Check that each line of the block has the keys and types of the last output."""
        shown = [json.loads(line) for line in block.text.splitlines()]
        printed = [json.loads(line) for line in self.printed.splitlines()]
        assert shown and printed, block
        for line in shown:
            assert shape(line) == shape(printed[0]), block


def install(source: Path, site: Path) -> None:
    """Install a package into a folder for `sys.path`, without network."""
    words = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--upgrade"]
    pip = [sys.executable, "-m", "pip", *words, "--target", str(site), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def shape(value: Any) -> Any:
    """Keys and types of a JSON value; of a list only its first element."""
    if isinstance(value, dict):
        return {key: shape(held) for key, held in value.items()}
    if isinstance(value, list):
        return [shape(held) for held in value[:1]]
    return type(value).__name__


def prepare_environment(
    patch: pytest.MonkeyPatch, folder: Path, corpora: Path, cache: Path
) -> None:
    (folder / "site").mkdir(exist_ok=True)
    patch.chdir(folder)
    patch.syspath_prepend(str(folder / "site"))
    patch.setenv("SUPERB_DATA", str(corpora))
    patch.setenv("S3PRL_MTL_CACHE", str(cache))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("WANDB_MODE", "offline")
