"""What the pages of docs/ and the READMEs of the examples show, works."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from s3prl_mtl.cli import COMMANDS, main, run_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

# Placeholders of a synopsis: such lines only have to parse.
_PLACEHOLDER = re.compile(r"\bRUN\b|\bOUT\b|\bDIR\b|\bNAME\b|\.\.\.|/path/")
_EXECUTED = ("export", "predict", "results")


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    return re.findall(r"```(\w*)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(text: str) -> list[str]:
    """The command lines of a block, each in one piece and without its comment."""
    joined = text.replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in joined.splitlines()]


def shell_lines() -> list[tuple[str, str]]:
    found = []
    for name, page in zip(NAMES, PAGES, strict=True):
        for language, text in blocks(page):
            if language in ("", "bash"):
                found += [(name, line) for line in commands(text)]
    return found


LINES = shell_lines()
TRAINING = [entry for entry in LINES if "run_mtl.py" in entry[1]]
OTHERS = [entry for entry in LINES if entry[1].startswith("python -m s3prl_mtl")]


@pytest.mark.parametrize(("page", "line"), TRAINING)
def test_every_training_command_can_be_typed(page: str, line: str):
    line = re.sub(r" -u hubert(?=.* -u hubert)", "", line.replace("...", "-u hubert -d ks"))
    words = shlex.split(line.partition("run_mtl.py")[2])
    arguments = run_parser().parse_args(words)
    for file in arguments.config:
        assert not file.startswith("run_scripts/") or (ROOT / file).is_file()


@pytest.mark.parametrize(("page", "line"), OTHERS)
def test_every_other_command_can_be_typed(page: str, line: str):
    command, *words = shlex.split(line.replace("fairseq|transformers|s3prl|onnx", "onnx"))[3:]
    COMMANDS[command]().parse_args(words)


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_to_a_file(name: str):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


@pytest.fixture(scope="module")
def workplace(
    tiny_corpus: Path, manifest_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with what the pages take for granted: a run, a corpus, a recording."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "corpora").symlink_to(tiny_corpus)
    speech = next((tiny_corpus / "LibriSpeech" / "test-clean").rglob("*.flac"))
    shutil.copy(speech, folder / "speech.wav")
    run = folder / "result" / "downstream" / "first"
    flags = ["-u", "hubert_tiny", "-d", "asr,ks,sv", "-c", str(ROOT / "run_scripts" / "demo.yaml")]
    places = ["--data", str(tiny_corpus), "--cache_dir", str(manifest_cache), "-p", str(run)]
    assert main([*flags, *places, "--steps", "1", "-o", "runner.test_last=false"]) == 0
    return folder


def with_python(page: Path) -> bool:
    return any(language == "python" for language, _ in blocks(page))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, p in zip(NAMES, PAGES, strict=True) if with_python(p)])
def test_the_examples_in_python_run_one_after_the_other(
    name: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In one namespace, with the exports and predictions that stand between them."""
    shutil.copytree(workplace, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("S3PRL_MTL_CACHE", str(tmp_path / "cache"))
    namespace: dict[str, object] = {"__name__": "docs"}
    for number, (language, text) in enumerate(blocks(ROOT / name), 1):
        if language == "python":
            script = tmp_path / f"block_{number}.py"
            script.write_text(text, encoding="utf-8")
            namespace |= runpy.run_path(str(script), init_globals=namespace, run_name="docs")
            continue
        for line in commands(text) if language in ("", "bash") else []:
            words = shlex.split(line, comments=True)
            if words[:3] != ["python", "-m", "s3prl_mtl"] or _PLACEHOLDER.search(line):
                continue
            if words[3] in _EXECUTED:
                assert main(words[3:]) == 0, line
    assert "s3prl_mtl" in sys.modules
