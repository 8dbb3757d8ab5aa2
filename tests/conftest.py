"""Fixtures of the whole test suite."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from s3prl_mtl.data.mini_corpus import make_corpus
from s3prl_mtl.training.signals import EXIT_SIGNALS, STOP_SIGNALS

# Read when huggingface_hub is imported. No test needs the network, and some would wait for it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Under `nohup`, or after `&` in a script, they are ignored, also by processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for ignored in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(ignored, signal.SIG_DFL)

TESTS = Path(__file__).parent
LONGEST = [
    "distributed/test_health.py",
    "distributed/test_evaluation.py",
    "upstreams/test_zoo.py",
    "docs/test_blocks.py",
    "authoring/test_conformance.py",
    "cli/test_main.py",
    "training/test_runner.py",
    "export/test_export_docs.py",
    "registry/test_task_packages.py",
    "mtl_branch/test_branch_checkpoint.py",
    "mtl_branch/test_branch_config.py",
    "s3prl_compat/test_experts.py",
    "training/test_unscored_splits.py",
    "training/test_non_finite_weights.py",
    "inference/test_trained.py",
]
"""Files that take longest; the rest are short enough to fill the end of a run evenly."""

SLOW_SECONDS = 3600
"""Time limit of a slow test, in place of that in pyproject.toml."""

Make = Callable[[Path], object]
Install = Callable[..., None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, so that no worker waits for another at the end."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
    order = {str(TESTS / name): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(str(item.path), len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Undo the logging set-up and the signal handlers of the command line, also of a fixture.

    After a signal a run ignores further ones, and processes that a later test starts would too.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, *EXIT_SIGNALS)}
    try:
        return (yield)
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
        root.handlers = handlers
        root.setLevel(level)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Make], Path]:
    """Makes a folder once for all worker processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def make(name: str, write: Make) -> Path:
        """The folder `name`; `write(folder)` creates it where no worker has done so.

        A worker that fails leaves no `.done` file, so that the next one fails with the same error.
        """
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                write(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_corpus(made_once: Callable[[str, Make], Path]) -> Path:
    """The smallest mini corpus: all nine layouts under one folder. Do not write to it."""
    return made_once("tiny", lambda folder: make_corpus(folder, "tiny"))


@pytest.fixture(scope="session")
def manifest_cache(made_once: Callable[[str, Make], Path]) -> Path:
    """A folder for manifests that the tests share, so that each split is scanned once."""
    return made_once("manifests", lambda folder: folder.mkdir())


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package with a task: its source, and the text of its config.yaml, if any."""
    modules: list[str] = []

    def _install(
        source: str, config: str | None, name: str = "tones", group: str = "s3prl_mtl.tasks"
    ) -> None:
        site = tmp_path / f"site_{name}_{len(modules)}"
        module = site / f"{name}_plugin"
        metadata = site / f"{name}-0.1.dist-info"
        module.mkdir(parents=True)
        metadata.mkdir()
        (module / "__init__.py").write_text(source)
        if config is not None:
            (module / "config.yaml").write_text(config)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        (metadata / "entry_points.txt").write_text(
            f"[{group}]\n{name} = {name}_plugin:DownstreamExpert\n"
        )
        modules.append(f"{name}_plugin")
        monkeypatch.syspath_prepend(str(site))

    yield _install
    for name in modules:
        sys.modules.pop(name, None)
