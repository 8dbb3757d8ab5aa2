"""Help and mistakes of the command line need no heavy import; mistakes name the nearest word."""

from __future__ import annotations

import subprocess
import sys

import pytest

from s3prl_mtl.cli.main import COMMANDS, MODES, command_parser, main
from s3prl_mtl.export import FORMATS

HEAVY = ("torch", "lhotse", "transformers", "scipy", "tensorboard", "numpy", "matplotlib")
EXPORT = ["export", "run", "--format", "onxn", "-o", "out"]
PROBE = f"""
import sys
from s3prl_mtl.cli.main import main
for words in {{lines!r}}:
    try:
        main(words)
    except SystemExit as end:
        assert not end.code
print("imported:", *(name for name in {HEAVY!r} if name in sys.modules))
"""


@pytest.mark.parametrize(
    "lines",
    [[["--help"]], [[name, "--help"] for name in COMMANDS], [["tsks"], ["--stpes", "3"], EXPORT]],
    ids=["help", "help-of-commands", "mistakes"],
)
def test_nothing_heavy_is_imported(lines: list[list[str]]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(lines=lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "imported:"


def test_listing_tasks_imports_no_scipy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(lines=[["tasks"]])],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = done.stdout.splitlines()[-1].split()
    assert "torch" in imported, "the states of the tasks are those of their imported packages"
    assert not {"scipy", "transformers", "tensorboard", "matplotlib"} & set(imported)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["tsks"], "'tasks'"),
        (["--stpes", "3"], "'--steps'"),
        (["-d", "ks", "--dryrun"], "'--dry-run'"),
        (["export", "--fromat=onnx"], "'--format'"),
        (["predict", "run", "a.wav", "--divice", "cpu"], "'--device'"),
    ],
)
def test_an_unknown_word_names_the_nearest_one(words: list[str], named: str, capsys) -> None:
    assert main([*words, "--verbose"]) == 2
    shown = capsys.readouterr().err
    assert named in shown and "[unknown-key]" in shown
    assert "usage:" not in shown


@pytest.mark.parametrize("words", [["--steps"], ["--steps", "x"], ["--precision", "fp8"]])
def test_a_malformed_argument_is_one_paragraph(words: list[str], capsys) -> None:
    assert main([*words, "--verbose"]) == 2
    shown = capsys.readouterr().err
    assert words[0] in shown and "[invalid-value]" in shown and "usage:" not in shown


def test_the_help_of_export_names_every_format() -> None:
    shown = command_parser("export").format_help()
    assert all(name in shown for name in FORMATS)


def test_a_call_without_words_shows_every_command_in_80_columns(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([])
    _, _, listed = capsys.readouterr().out.partition("commands")
    lines = listed.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_80_columns(command: str, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, command_parser(command).format_help().splitlines())) <= 80


@pytest.mark.parametrize("mode", MODES)
def test_train_and_evaluate_are_the_modes_of_run_mtl(mode: str) -> None:
    words = ["-e", "run", "--seed", "3"]
    chosen = vars(command_parser(mode).parse_args(words))
    assert chosen == vars(command_parser("").parse_args([*words, "-m", mode]))
