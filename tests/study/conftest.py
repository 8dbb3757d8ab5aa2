"""Studies whose trainings are a small program that records what it was asked."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from s3prl_mtl.study.commands import commands_of
from s3prl_mtl.study.execution import Execution
from s3prl_mtl.study.plan import Plan, StudyRun
from s3prl_mtl.study.record import RunStatus, survey
from s3prl_mtl.study.settings import StudySettings
from s3prl_mtl.training.signals import STOP_SIGNALS, StopSignals

FAKE = """
import json, os, signal, sys, uuid
from pathlib import Path

calls, *words = sys.argv[1:]
with open(calls, "a") as file:
    file.write(json.dumps([words, os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
if words[0] == "merge":
    Path(words[words.index("-o") + 1]).write_text("merged")
    sys.exit()
folder = Path(words[words.index("-p") + 1])
orders = Path(calls).parent / "orders.json"
order = json.loads(orders.read_text()) if orders.exists() else {}
name = next((name for name in order if str(folder).endswith(name)), None)
if order.get(name) == "fail":
    print("error: The corpus is empty. Where: here.")
    sys.exit(2)
if order.get(name) == "signal":
    sys.exit(0)
if order.get(name) == "wait":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    (folder / "waits").touch()
    signal.sigwait([signal.SIGTERM])
    (folder / "states-1.ckpt").touch()
    sys.exit(0)
(folder / "finished.json").write_text(json.dumps({"step": 2, "id": uuid.uuid4().hex}))
"""


class FakeStudy:
    """A study in a folder, with the calls that its processes recorded."""

    def __init__(self, folder: Path, plan: Plan, **settings: Any) -> None:
        self.out = folder / "study"
        self.settings = StudySettings(plan=plan, upstream="hubert_tiny", **settings)
        self.file = folder / "calls.jsonl"
        self.orders = folder / "orders.json"
        self.fake = folder / "fake.py"
        self.fake.write_text(FAKE)

    @property
    def runs(self) -> tuple[StudyRun, ...]:
        return self.settings.plan.runs

    @property
    def program(self) -> list[str]:
        return [sys.executable, str(self.fake), str(self.file)]

    def order(self, **orders: str) -> None:
        """What runs do instead of finishing: `fail`, `signal` or `wait`, by name with __ for /."""
        plain = {name.replace("__", "/"): order for name, order in orders.items()}
        self.orders.write_text(json.dumps(plain))

    def execute(
        self, jobs: int = 1, devices: Sequence[str] = (), only: Sequence[StudyRun] | None = None
    ) -> dict[str, RunStatus]:
        """Execute the study, and return the states at the end."""
        self.file.unlink(missing_ok=True)
        with StopSignals() as signals:
            return Execution(
                self.runs,
                self.out,
                lambda run: commands_of(run, self.settings, self.out),
                jobs,
                devices,
                signals,
                self.program,
            ).execute(only)

    def states(self) -> dict[str, str]:
        return {name: state.status for name, state in survey(self.runs, self.out).items()}

    def calls(self) -> list[list[str]]:
        """The words of every process of the last execution."""
        return [words for words, _ in self._lines()]

    def devices(self) -> list[str | None]:
        """The GPUs that they saw."""
        return [device for _, device in self._lines()]

    def trained(self) -> list[str]:
        """The names of the runs that the last execution trained."""
        folders = [words[words.index("-p") + 1] for words in self.calls() if words[0] == "train"]
        return [str(Path(folder).relative_to(self.out)) for folder in folders]

    def _lines(self) -> Iterator[tuple[list[str], str | None]]:
        try:
            text = self.file.read_text()
        except FileNotFoundError:  # also if `execute` removes it now
            return
        yield from map(json.loads, text.splitlines())


@pytest.fixture(autouse=True)
def same_signals() -> Iterator[None]:
    """Restore the handlers: a process that was asked to stop ignores further signals."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def fake_study(tmp_path: Path) -> Callable[..., FakeStudy]:
    """Makes a study of the tasks ks and er."""

    def make(plan: Plan | None = None, **settings: Any) -> FakeStudy:
        return FakeStudy(tmp_path, plan or Plan(specs=("ks", "er")), **settings)

    return make
