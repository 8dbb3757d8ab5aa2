"""Every block of the documentation is run, or checked by a rule."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser as torchrun_parser

from s3prl_mtl import ClassificationExpert
from s3prl_mtl.api.run_inputs import config_of, parse_splits
from s3prl_mtl.cli.main import command_parser
from s3prl_mtl.config import build_config
from s3prl_mtl.fileio.deferred_log import DeferredLog
from tests.docs import not_run, prerequisites
from tests.docs.pages import (
    ALL_BLOCKS,
    PAGES,
    ROOT,
    SHELL,
    Block,
    Command,
    blocks,
    commands,
    indented_code,
)
from tests.docs.session import Session, is_not_run
from tests.docs.training_command import TRAINING as TRAINING_COMMAND
from tests.docs.training_command import runnable

NAMES = list(PAGES)
PARENTHESES = r"\(((?:[^()]|\([^()]*\))*)\)"


def text_rule(block: Block) -> str | None:
    """The rule that checks a block that is not code, or None."""
    if block.language not in (*SHELL, "text"):
        return None
    for (page, beginning), reason in not_run.TEXTS.items():
        if block.page == page and block.first_line.strip().startswith(beginning):
            return reason
    if re.match(r"(def )?\w+\((self, )?\w+", block.first_line):
        return "signatures"
    if block.first_line.strip() == "/path/to/corpora/":
        return "folders"
    return None


COMMANDS = [
    command
    for block in ALL_BLOCKS
    if block.language in SHELL and text_rule(block) is None
    for command in commands(block)
]
TRAINING = [command for command in COMMANDS if TRAINING_COMMAND.search(command.text)]
REST = [command for command in COMMANDS if command not in TRAINING]
OURS = [command for command in REST if command.text.startswith("s3prl-mtl ")]
OTHERS = [command for command in REST if command not in OURS]


@pytest.mark.parametrize("name", NAMES)
def test_code_is_fenced(name: str):
    assert indented_code(name) == []


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=str)
def test_every_block_is_tested(block: Block):
    # Mermaid blocks: test_import_graph.py.
    known = block.language in ("python", "yaml", "mermaid")
    if block.language == "json":
        # Compared with the output of the command before it.
        known = any("predict" in c.text for c in COMMANDS if c.block.page == block.page)
    assert known or text_rule(block) or (block.language in SHELL and commands(block)), (
        "No rule tests this block: give it the language python, yaml, json or bash, or state in "
        "not_run.TEXTS why it cannot be tested."
    )


def test_exceptions_refer_to_existing_blocks():
    for beginning in not_run.COMMANDS:
        assert any(command.text.startswith(beginning) for command in COMMANDS), beginning
    for page, beginning in not_run.TEXTS:
        assert any(block.first_line.strip().startswith(beginning) for block in blocks(page))


@pytest.mark.parametrize("command", TRAINING, ids=str)
def test_training_commands_give_a_config(
    command: Command,
    tiny_corpus: Path,
    examples_site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.syspath_prepend(str(examples_site))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUPERB_DATA", str(tiny_corpus))
    if "s3prl:" in command.text:
        prerequisites.add_tasks_of_s3prl(tmp_path, tiny_corpus)
    if "multitask.yaml" in command.text or "states-200000" in command.text:
        prerequisites.add_branch_config(tmp_path, tiny_corpus)
    if "stft.yaml" in command.text:
        prerequisites.add_stft(tmp_path)
    launcher, words = runnable(command, tiny_corpus)
    if launcher:
        assert launcher[0] == "torchrun"
        torchrun_parser().parse_args([*launcher[1:], "s3prl_mtl", *words])
    arguments = command_parser(words[0]).parse_args(words[1:])
    if arguments.mode == "evaluate":
        parse_splits(arguments.evaluate_split)
        assert arguments.past_exp
        return
    # The page makes the package of spoken_words when it is run.
    if arguments.downstream:
        arguments.downstream = arguments.downstream.replace("spoken_words", "ks")
    config = config_of(arguments, None, DeferredLog())
    assert config["downstream"] and config["runner"]["total_steps"] == 2


@pytest.mark.parametrize("command", OURS, ids=str)
def test_other_commands_of_s3prl_mtl_are_parsed(command: Command):
    line = command.text.replace("fairseq|transformers|s3prl|onnx|xares|hear", "onnx")
    name, *words = shlex.split(line)[1:]
    command_parser(name).parse_args(words)


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_commands_of_other_programs_are_valid(command: Command):
    """The files and flags that they name exist."""
    words = command.words
    if words[:2] == ["pip", "install"]:
        check_installation(command)
    elif words[0] in ("bash", "sbatch"):
        subprocess.run(["bash", "-n", str(ROOT / words[1])], check=True)
    elif words[0] == "export":
        subprocess.run(["bash", "-euc", command.text], check=True)
    elif words[:2] == ["python", "run_downstream.py"]:
        known = flags_of_s3prl()
        assert {word for word in words if word.startswith("-")} <= known
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        text = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in words if word.startswith("-"))
    elif "|" in words and "s3prl-mtl" in words:
        ours = words[words.index("s3prl-mtl") + 1 :]
        command_parser(ours[0]).parse_args(ours[1:])
    elif words[0] == "curl":
        page = (ROOT / "s3prl_mtl" / "serving" / "app.py").read_text(encoding="utf-8")
        assert f'"/{words[-1].rpartition("/")[2]}"' in page
    elif words[:3] == ["python", "-m", "pytest"]:
        assert (ROOT / words[3]).is_dir()
    elif words[:2] == ["python", "-m"] and words[2].endswith("_task.mini_corpus"):
        package, module = words[2].split(".")
        found = list((ROOT / "examples").glob(f"*/{package}/{module}.py"))
        assert len(found) == 1 and len(words) == 4
    else:
        raise AssertionError(f"{command}: no rule to check this command")


def check_installation(command: Command) -> None:
    for word in command.words[2:]:
        extra = re.fullmatch(r"s3prl-mtl\[(\w+)\]", word)
        if extra:
            assert f'"{extra[1]}":' in (ROOT / "setup.py").read_text()
        elif word.startswith("./"):
            assert (ROOT / word / "pyproject.toml").is_file()
        elif word.endswith(".txt"):
            assert (ROOT / word).is_file()
        elif not word.startswith("-") and word != "s3prl-mtl":
            before = [earlier.text for earlier in commands(command.block)]
            made = [line for line in before if "new-task" in line and line.split()[-1] == word]
            assert made, f"{command}: no earlier command makes {word}"


def flags_of_s3prl() -> set[str]:
    import importlib.util

    spec = importlib.util.find_spec("s3prl")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0], "run_downstream.py").read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    arguments = [argument for call in calls for argument in call.args]
    constants = [node.value for node in arguments if isinstance(node, ast.Constant)]
    return {value for value in constants if isinstance(value, str) and value.startswith("-")}


@pytest.mark.parametrize("block", [b for b in ALL_BLOCKS if text_rule(b) == "signatures"], ids=str)
def test_shown_signatures_are_those_of_our_experts(block: Block):
    shown = re.findall(rf"^(?:def )?(\w+){PARENTHESES}", block.text, flags=re.MULTILINE)
    assert shown
    for name, text in shown:
        real = inspect.signature(getattr(ClassificationExpert, name)).parameters
        (function,) = ast.parse(f"def f({text}): 0").body
        assert isinstance(function, ast.FunctionDef)
        listed = [argument.arg for argument in function.args.args + function.args.kwonlyargs]
        assert listed and all(word in real for word in listed), (name, listed, list(real))


@pytest.mark.parametrize("block", [b for b in ALL_BLOCKS if text_rule(b) == "folders"], ids=str)
def test_shown_folders_are_those_of_the_corpora(block: Block, tiny_corpus: Path):
    named = re.findall(r"([\w.]+)/", block.text.partition("\n")[2])
    assert set(named) == {path.name for path in tiny_corpus.iterdir() if path.is_dir()}


@pytest.mark.parametrize("block", [b for b in ALL_BLOCKS if b.language == "yaml"], ids=str)
def test_shown_settings_are_valid(
    block: Block,
    tiny_corpus: Path,
    examples_site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.syspath_prepend(str(examples_site))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shown.yaml").write_text(block.text)
    shown = yaml.safe_load(block.text)
    named = [key for key in shown if ":" in key or len(key) <= 3]
    flags = {"upstream.name": "hubert_tiny", "data": str(tiny_corpus)}
    if "downstream" not in shown:
        flags["downstream"] = named
    config = build_config(files=[tmp_path / "shown.yaml"], flags=flags)
    assert set(named) <= set(config["downstream"])
    for key, value in shown.items():
        assert_holds(config[key], value)


def assert_holds(whole: object, part: object) -> None:
    """Check that `whole` contains `part`."""
    if isinstance(part, dict):
        assert isinstance(whole, dict)
        for key, value in part.items():
            assert_holds(whole[key], value)
    else:
        assert whole == part


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name: str):
    page = PAGES[name]
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_example_of_the_readme_gives_features_of_two_utterances():
    (block,) = [block for block in blocks("README.md") if block.language == "python"]
    namespace: dict[str, Any] = {}
    exec(block.text, namespace)
    assert [features.shape[1] for features in namespace["features"]] == [96, 96]


# Each block of docs/export.md is run in tests/export/test_export_docs.py.
WITH_PYTHON = [
    pytest.param(name, marks=pytest.mark.slow if name == "docs/export.md" else [])
    for name in NAMES
    if any(block.language == "python" for block in blocks(name))
]


def run_page(session: Session, name: str) -> None:
    for block in blocks(name):
        if block.language == "python":
            session.python(block)
        elif block.language == "json":
            session.printed_json(block)
        elif block.language in SHELL and text_rule(block) is None:
            for command in commands(block):
                session.command(command)


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_blocks_and_quick_commands_of_a_page_run_in_order(
    name: str, session: Callable[..., Session]
):
    run_page(session(everything=False, with_run=True), name)


PRESUPPOSE_A_RUN = ("docs/decoding.md", "docs/export.md")
WITH_COMMANDS = list(
    dict.fromkeys(command.block.page for command in COMMANDS if not is_not_run(command.text))
)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_all_commands_of_a_page_run_in_order(
    name: str, session: Callable[..., Session], tiny_corpus: Path, tmp_path: Path
):
    """With a small encoder, the tiny corpus and two steps, otherwise unchanged."""
    place = session(everything=True, with_run=name in PRESUPPOSE_A_RUN)
    prepared = prerequisites.PREPARED.get(name, ())
    if "encoders" in prepared:
        prerequisites.add_encoders(place.folder)
    if "stft" in prepared:
        prerequisites.add_stft(place.folder)
    if "tasks" in prepared:
        prerequisites.add_tasks_of_s3prl(place.folder, tiny_corpus)
    if "noise" in prepared:
        prerequisites.add_noise(place.folder)
    if "tables" in prepared:
        prerequisites.add_tables(place.folder, tiny_corpus)
    if "branch" in prepared:
        prerequisites.add_branch_run(
            place.folder, prerequisites.add_branch_config(place.folder, tiny_corpus)
        )
    run_page(place, name)
    assert place.ran
