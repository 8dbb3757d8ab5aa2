"""`--version` in every form of the command line."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version

import pytest
import torch

from s3prl_mtl.cli.main import main


@pytest.mark.parametrize("words", [["--version"], ["results", "--version"]])
def test_versions_are_those_of_the_installation(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    found = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert found["s3prl-mtl"] == version("s3prl-mtl")
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch")
    assert found["lhotse"] == version("lhotse")
    assert found["cuda"] == (torch.version.cuda or "none")


def test_a_package_that_is_missing_is_named_as_such(monkeypatch, capsys) -> None:
    monkeypatch.setattr("s3prl_mtl.api.versions.PACKAGES", ("no-such-package",))
    with pytest.raises(SystemExit):
        main(["--version"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "no-such-package" in line)
    assert re.fullmatch(r"no-such-package [a-z ]+", line)  # not a number
