"""The wheels of the examples work in a separate environment, together with our package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ("lid", "qbe")

pytestmark = pytest.mark.slow


@dataclass
class Environment:
    """A fresh environment with the examples, which sees what is installed here."""

    python: Path
    folder: Path

    def run(self, *words: str) -> str:
        variables = {k: v for k, v in os.environ.items() if k not in ("SUPERB_DATA", "RANK")}
        # This checkout, wherever the installed s3prl-mtl points to.
        variables["PYTHONPATH"] = str(ROOT)
        variables["S3PRL_MTL_CACHE"] = str(self.folder / "cache")
        done = subprocess.run(
            [str(self.python), *words],
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("examples")
    for name in EXAMPLES:
        # From a copy: building leaves files in the source.
        shutil.copytree(ROOT / "examples" / name, folder / "source" / name)
        words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder / "wheels")]
        subprocess.run(
            [sys.executable, "-m", "pip", *words, str(folder / "source" / name)],
            check=True,
            capture_output=True,
        )
    wheels = sorted((folder / "wheels").glob("*.whl"))
    assert [wheel.name.partition("-")[0] for wheel in wheels] == ["lid_task", "qbe_task"]
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(ours)]
    (Path(site) / "beside.pth").write_text("\n".join(lines) + "\n")
    words = ["--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", "pip", *words, *map(str, wheels)], check=True, capture_output=True
    )
    return Environment(python, folder)


@pytest.fixture(scope="module")
def corpora(environment: Environment, tiny_corpus: Path) -> Path:
    """The tiny corpus with the two corpora of the examples."""
    folder = environment.folder / "corpora"
    shutil.copytree(tiny_corpus, folder)
    environment.run("-m", "lid_task.mini_corpus", str(folder / "languages"))
    environment.run("-m", "qbe_task.mini_corpus", str(folder))
    return folder


def test_packages_are_imported_from_their_wheels(environment: Environment):
    script = "import lid_task, qbe_task; print(lid_task.__file__); print(qbe_task.__file__)"
    for path in environment.run("-c", script).split():
        assert path.startswith(str(environment.folder / "env"))


def test_tasks_are_listed(environment: Environment, corpora: Path):
    shown = environment.run(
        "-c",
        "from s3prl_mtl.tracking.console import OUTPUT; OUTPUT.width = 200\n"
        "from s3prl_mtl.cli.main import main\n"
        f"raise SystemExit(main(['tasks', '--data', {str(corpora)!r}]))",
    )
    rows = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines()]
    assert ["lid", "lid-task 0.1.0", "accuracy", "Language folders", "present", "ok"] in [
        row[1:-1] for row in rows
    ]
    assert ["qbe", "qbe-task 0.1.0", "MTWV", "QUESST 2014", "present", "ok"] in [
        row[1:-1] for row in rows
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_their_own_tests_pass(name: str, environment: Environment):
    tests = environment.folder / "source" / name / "tests"
    shown = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests))
    assert " passed" in shown and "failed" not in shown


def test_lid_trains_with_a_built_in_task_and_qbe_evaluates_the_run(
    environment: Environment, corpora: Path
):
    program = str(ROOT / "run_mtl.py")
    data = ["--data", str(corpora), "-p", "run"]
    environment.run(program, "-u", "hubert_tiny", "-d", "ks,lid", *data, "--steps", "2")
    assert (environment.folder / "run" / "states-2.ckpt").is_file()
    environment.run(program, "-m", "evaluate", "-e", "run", "-d", "qbe", *data)
    results = json.loads((environment.folder / "run" / "results.json").read_text())
    assert 0 <= results["lid"]["test"]["acc"] <= 1
    values = results["qbe"]["dev"]
    layers = {key: value for key, value in values.items() if key.startswith("mtwv_layer_")}
    assert len(layers) == 4 and values["mtwv"] == max(layers.values())
    assert 0 <= results["qbe"]["test"]["mtwv"] <= 1


def test_a_task_without_parameters_is_refused_in_training(environment: Environment, corpora: Path):
    flags = ["-u", "hubert_tiny", "-d", "ks,qbe", "--data", str(corpora), "-p", "refused"]
    done = subprocess.run(
        [str(environment.python), str(ROOT / "run_mtl.py"), *flags, "--steps", "1"],
        cwd=environment.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "evaluate -e RUN -d qbe" in done.stderr
