"""A working folder for each page."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3prl_mtl.cli.main import main
from tests.docs.prerequisites import add_recordings
from tests.docs.session import Session, install, prepare_environment

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def restored_modules() -> Iterator[None]:
    """Undo the imports of packages made by pages."""
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith(("s3prl_experts_at_", "spoken_words", "my_task", "lid_", "qbe_")):
            del sys.modules[name]


@pytest.fixture(scope="session")
def trained(tiny_corpus: Path, manifest_cache: Path, tmp_path_factory) -> Path:
    """The run that most pages require."""
    run = tmp_path_factory.mktemp("docs") / "first"
    flags = ["-u", "hubert_tiny", "-d", "asr,ks,er,sv", "-c", str(ROOT / "run_scripts/demo.yaml")]
    places = ["--data", str(tiny_corpus), "--cache_dir", str(manifest_cache), "-p", str(run)]
    assert main([*flags, *places, "--steps", "1", "-o", "runner.test_last=false"]) == 0
    return run


@pytest.fixture(scope="session")
def examples_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `sys.path` with the packages of `examples/`."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("lid", "qbe"):
        # A copy: building leaves files in the source.
        source = shutil.copytree(ROOT / "examples" / name, folder / name)
        install(source, folder / "site")
    return folder / "site"


@pytest.fixture
def session(
    tmp_path: Path,
    tiny_corpus: Path,
    manifest_cache: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Session]:
    """Make a session in a folder with corpus, recordings and, optionally, the run."""

    def make(everything: bool, with_run: bool) -> Session:
        folder = tmp_path / "work"
        folder.mkdir()
        add_recordings(folder, tiny_corpus)
        if everything:
            shutil.copytree(trained, folder / "RUN")
        else:
            (folder / "corpora").symlink_to(tiny_corpus)
        if with_run:
            shutil.copytree(trained, folder / "result" / "downstream" / "first")
        prepare_environment(monkeypatch, folder, tiny_corpus, manifest_cache)
        return Session(folder, tiny_corpus, everything, trained)

    return make
