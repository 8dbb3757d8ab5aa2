"""The commands and code of docs/export.md work as described."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

from s3prl_mtl.cli.main import main
from tests.export.tuned_runs import FIXTURES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(
    tiny_corpus: Path, manifest_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a run of ks, `result/downstream/first`, and all that the page exports of it."""
    folder = tmp_path_factory.mktemp("docs")
    settings = "runner.test_last=false,,scheduler=null,,ks.downstream_expert.datarc.num_workers=0"
    words = ["-u", "hubert_tiny", "-d", "ks", "--steps", "2", "-n", "first", "-o", settings]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SUPERB_DATA", str(tiny_corpus))
        patch.setenv("S3PRL_MTL_CACHE", str(manifest_cache))
        assert main(words) == 0
        for line in exports():
            assert main(shlex.split(line)[1:]) == 0, line
    return folder


def exports() -> list[str]:
    lines = [line for _, block in BLOCKS for line in block.splitlines()]
    return [line for line in lines if line.startswith("s3prl-mtl export result")]


def test_every_format_is_exported_once() -> None:
    formats = [re.search(r"--format (\w+)", line) for line in exports()]
    assert [found.group(1) for found in formats if found] == [
        "fairseq",
        "transformers",
        "s3prl",
        "onnx",
        "xares",
        "hear",
    ]


CODE = [text for language, text in BLOCKS if language == "python"]
PRINTED = {
    "export(": ("tuned.pt", ""),
    "load_upstream(": ("encoder([__import__('torch').zeros(400)]).states.shape", "4, 1, 96"),
    "AutoModel": ("torch.stack(hidden_states).shape", "4, 1, 49, 96"),
    "hubert_local(": ("features[0].shape", "49, 96"),
    "xares_encoder": ("embeddings.shape, encoder.output_dim", "2, 156, 96"),
    "onnxruntime": ("hidden_states.shape, features.shape, settings['step']", "4, 1, 149, 96"),
}


def test_every_python_block_has_an_expected_output() -> None:
    assert len(CODE) == len(PRINTED)


@pytest.mark.parametrize("code", CODE, ids=[code.splitlines()[-1][:30] for code in CODE])
def test_every_python_block_runs(
    code: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expression, answer) = next(PRINTED[word] for word in PRINTED if word in code)
    monkeypatch.chdir(workplace)
    if answer:
        code += f"\nanswer = str(({expression}))\n"
    Path("block.py").write_text(code, encoding="utf-8")
    found = runpy.run_path("block.py")
    if answer:
        assert answer in found["answer"]
    else:
        assert (workplace / expression).is_file()


def test_the_code_for_fairseq_is_what_fairseq_ran() -> None:
    (code,) = [text for language, text in BLOCKS if language == "text" and "fairseq" in text]
    ran = (FIXTURES / "export" / "read_with_fairseq.py").read_text(encoding="utf-8")
    for line in code.splitlines():
        assert re.search(rf"^\s*{re.escape(line)}$", ran, flags=re.MULTILINE), line


def test_the_folder_for_s3prl_holds_the_files_that_are_shown(workplace: Path) -> None:
    (shown,) = [text for language, text in BLOCKS if text.startswith("for-s3prl/")]
    upstream, head, pattern = [line.split()[0] for line in shown.splitlines()]
    assert pattern.replace("<task>", "ks").replace("<upstream>", "hubert_tiny") == head
    files = [path for path in (workplace / "for-s3prl").rglob("*") if path.is_file()]
    assert {str(path.relative_to(workplace)) for path in files} == {upstream, head}


def test_the_folder_for_s3prl_starts_the_heads_of_a_new_run(
    workplace: Path,
    tiny_corpus: Path,
    manifest_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUPERB_DATA", str(tiny_corpus))
    monkeypatch.setenv("S3PRL_MTL_CACHE", str(manifest_cache))
    heads = workplace / "for-s3prl"
    settings = (
        "runner.test_last=false,,scheduler=null,,optimizer.lr=0.0,,"
        "ks.downstream_expert.datarc.num_workers=0"
    )
    words = ["-u", "hubert_tiny", "-d", "ks", "--steps", "1", "-p", "run"]
    assert main([*words, "--init_ckpt", str(heads), "-o", settings]) == 0
    began = torch.load(heads / "ks" / "hubert_tiny_ks.ckpt", weights_only=True)["Downstream"]
    ended = torch.load("run/states-1.ckpt", weights_only=True)["Tasks"]["ks"]["Downstream"]
    for name, value in began.items():
        if name != "best_score":
            assert torch.equal(ended[name], value), name
