"""Measure how a rank opens a split of a million utterances, and resumes in the middle of its epoch.

    python benchmarks/manifests.py [--utterances 1000000] [--workers 2] [--log results.jsonl]

The corpus is synthetic: every utterance has an id and labels of its own, and is a segment of one of
a thousand short files. It is classified, as by `sid`. Each start is a new process; the first one
scans the audio and writes the manifest. Seconds are processor time of the rank, which other
programs change less: to load the split, to load and check it, and from then to the first batch of a
resumed run; the log has wall time, too. Memory is the proportional set size (PSS) of a rank and its
loader workers, from /proc (Linux), in which a page that several processes share counts once:
*libraries* before the split is loaded; *growth* from then to the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soundfile
import torch
from common import append, machine, show_machine, table

from s3prl_mtl.data import Corpus, Utterance, list_audio, read_lines
from s3prl_mtl.tasks.classification import ClassificationExpert

FILES = 1000
CLASSES = 1000
BATCH = 32
SECONDS = 0.1


class Synthetic(Corpus):
    """Utterances `<id> <file> <class> <start>` of `utterances.txt`."""

    title: ClassVar[str] = "Synthetic"
    task: ClassVar[str] = "synthetic"
    splits: tuple[str, ...] = ("train",)
    cacheable: ClassVar[bool] = True

    def __init__(self, root: str) -> None:
        super().__init__({"root": root})
        self.root = Path(root)

    def problems(self) -> list[str]:
        return []

    def utterances(self, split: str) -> list[Utterance]:
        files = {name: self.root / "audio" / name for name in list_audio(self.root / "audio")}
        found = []
        for _, line in read_lines(self.root / "utterances.txt"):
            name, file, label, start = line.split()
            labels = {"class": label, "text": f"Text of {name}."}
            found.append(Utterance(name, files[file], labels, float(start), SECONDS))
        return found

    def label_space(self) -> dict[str, Any]:
        return {"classes": [f"c{number}" for number in range(CLASSES)]}


class SyntheticTask(ClassificationExpert):
    name = "synthetic"
    corpus_type = Synthetic


def write_corpus(root: Path, utterances: int) -> None:
    """Write the audio and the list of the corpus."""
    generator = np.random.default_rng(0)
    for number in range(FILES):
        path = root / "audio" / f"{number % 20:02d}" / f"{number:04d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, generator.uniform(-0.5, 0.5, 24_000), 16_000)
    with (root / "utterances.txt").open("w", encoding="utf-8") as file:
        for number in range(utterances):
            name = f"{number % FILES % 20:02d}/{number % FILES:04d}.wav"
            label, start = number % CLASSES, number // FILES / FILES
            file.write(f"speaker-{label:04d}-{number:08d} {name} c{label} {start % 1:.3f}\n")
    earlier = time.time() - 60  # a corpus that changed just now is not trusted to be complete
    for path in [*root.rglob("*"), root, root.parent]:
        os.utime(path, (earlier, earlier))


def memory(process: int | str = "self") -> int:
    """Proportional set size of a process, in bytes."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    (kilobytes,) = re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    return 1024 * int(kilobytes)


class Clock:
    """Processor and wall time from a start to several ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.wall_seconds: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self._start = time.process_time(), time.perf_counter()

    def note(self, end: str) -> None:
        self.seconds[end] = time.process_time() - self._start[0]
        self.wall_seconds[end] = time.perf_counter() - self._start[1]


def start(root: Path, workers: int) -> dict[str, Any]:
    """Start a run on the corpus in this process; seconds, and bytes of memory."""
    torch.set_num_threads(1)
    expert = SyntheticTask(
        8,
        320,
        {
            "datarc": {"root": str(root), "train_batch_size": BATCH, "num_workers": workers},
            "modelrc": {
                "projector_dim": 8,
                "select": "UtteranceLevel",
                "UtteranceLevel": {"pooling": "MeanPooling"},
            },
        },
        root.parent / "run",
        cache_dir=root.parent / "cache",
    )
    libraries = memory()
    clock = Clock()
    expert.prepare("train")
    clock.note("load")
    expert.report(["train"])
    clock.note("open")
    opened = memory()

    clock.restart()
    middle = expert.utterances("train") // BATCH // 2
    batches = iter(expert.get_dataloader("train", epoch=1, skip_batches=middle))
    next(batches)
    clock.note("resume")
    for _ in range(50):
        next(batches, None)
    workers_bytes = sum(memory(child.pid) for child in multiprocessing.active_children())
    return {
        "seconds": clock.seconds,
        "wall_seconds": clock.wall_seconds,
        "libraries": libraries,
        "opened": opened,
        "with_workers": memory() + workers_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--utterances", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--log", type=Path, help="append a JSON line for each start")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        print(json.dumps(start(arguments.start, arguments.workers)))
        return
    found = machine(torch.device("cpu"))
    show_machine(found)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        write_corpus(corpus, arguments.utterances)
        for name in ("first", "second"):
            measured = in_new_process(corpus, arguments.workers)
            rows.append(row(name, measured))
            if arguments.log:
                settings = {"benchmark": "manifests", "utterances": arguments.utterances}
                append(arguments.log, {**settings, **found, "start": name, **measured})
    head = ["start", "load s", "load, check s", "resume s", "libraries", "opened"]
    print(table([*head, "with workers", "growth"], rows))


def in_new_process(corpus: Path, workers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--start", str(corpus), "--workers", str(workers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def row(name: str, measured: Mapping[str, Any]) -> list[str]:
    seconds = [f"{measured['seconds'][part]:.2f}" for part in ("load", "open", "resume")]
    sizes = [measured[part] for part in ("libraries", "opened", "with_workers")]
    sizes.append(measured["with_workers"] - measured["libraries"])
    return [name, *seconds, *(f"{size / 1e6:.0f} MB" for size in sizes)]


if __name__ == "__main__":
    main()
