"""The wheel is complete and works without the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # From a copy: building in the checkout would leave files there.
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, tracked):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    words = ["wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_every_yaml_file_and_the_weights(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = [ROOT / "s3prl_mtl", ROOT / "downstream_plugins"]
    wanted = {
        str(path.relative_to(ROOT))
        for package in packages
        for pattern in ("*.py", "*.yaml", "*.pt", "py.typed")
        for path in package.rglob(pattern)
    }
    assert len([name for name in wanted if name.endswith(".yaml")]) == 24
    assert wanted <= names
    assert not any(name.startswith("tests/") for name in names)


@pytest.mark.slow
def test_an_installed_wheel_trains_without_the_checkout(
    wheel: Path, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    site = tmp_path / "site"
    words = ["install", "--no-deps", "-q", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    script = """
import sys
import s3prl_mtl
from s3prl_mtl.cli.main import main
assert s3prl_mtl.__file__.startswith(sys.argv[1]), s3prl_mtl.__file__
settings = "runner.test_last=false,,scheduler=null,,ks.downstream_expert.datarc.num_workers=0"
words = ["-u", "hubert_tiny", "-d", "ks", "--steps", "1", "-p", "run", "-o", settings]
raise SystemExit(main(words))
"""
    variables = {
        "PYTHONPATH": str(site),
        "SUPERB_DATA": str(tiny_corpus),
        "S3PRL_MTL_CACHE": str(manifest_cache),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(site)],
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "states-1.ckpt").is_file()


def test_ci_runs_every_supported_python_with_the_same_command() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    lowest, above = re.findall(r'python_requires=">=3\.(\d+),<3\.(\d+)"', SETUP)[0]
    tested = job["strategy"]["matrix"]["python-version"]
    assert tested == [f"3.{minor}" for minor in range(int(lowest), int(above))]
    assert job["steps"][-1]["run"] == "bash .ci/run"


def test_commits_are_checked_with_the_tools_of_the_environment() -> None:
    # Hooks of other repositories would pin versions of their own, which drift from constraints.txt.
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (source,) = config["repos"]
    assert source["repo"] == "local"
    assert {hook["language"] for hook in source["hooks"]} == {"system"}
    assert [hook["id"] for hook in source["hooks"]] == ["ruff-check", "ruff-format", "mypy"]


def test_every_direct_dependency_has_a_tested_version() -> None:
    pinned = {line.partition("==")[0].lower() for line in CONSTRAINTS.splitlines() if "==" in line}
    distribution = metadata.distribution("s3prl-mtl")
    wanted = {re.split(r"[\[<>=; ]", line)[0].lower() for line in distribution.requires or []}
    assert wanted <= pinned


def test_issue_templates_ask_for_the_versions() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    for name in ("bug_report.yml", "feature_request.yml"):
        form = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
        assert any("--version" in str(field["attributes"]) for field in form["body"])
