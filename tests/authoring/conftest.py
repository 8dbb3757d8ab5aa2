"""Packages with a task, installed for one test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Install = Callable[..., None]


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
