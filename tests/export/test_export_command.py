"""The command `export`: selection of the checkpoint, and errors."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.cli.main import main
from s3prl_mtl.export import FORMATS, export
from s3prl_mtl.export.command import Format
from s3prl_mtl.export.formats import Options
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.upstreams import load_upstream
from s3prl_mtl.upstreams.base import HiddenStates, Upstream
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert
from tests.export.tuned_runs import HEAD, move, save_run, tuned
from tests.mistakes import user_error

ROOT = Path(__file__).parents[2]


class PluginUpstream(Upstream):
    """An encoder of another package, which cannot be rebuilt from a checkpoint."""

    hidden_size = 4
    num_hidden_states = 2
    downsample_rate = 320

    def forward(self, wavs: list[Tensor]) -> HiddenStates:
        raise NotImplementedError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_folder_selects_its_newest_undamaged_checkpoint_and_is_unchanged(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    encoders = {step: tuned("odd_base") for step in (5, 40, 100)}
    for step, encoder in encoders.items():
        encoder.mask_emb.data.fill_(float(step))
        save_run(run, encoder, step=step)
    newest = load_hubert(export(run, "fairseq", tmp_path / "newest.pt"))
    assert newest.mask_emb.unique().tolist() == [100.0]
    content = (run / "states-100.ckpt").read_bytes()
    (run / "states-100.ckpt").write_bytes(content[: len(content) // 2])
    before = load_hubert(export(run, "fairseq", tmp_path / "before.pt"))
    assert before.mask_emb.unique().tolist() == [40.0]
    assert names_in(run) == ["states-100.ckpt", "states-40.ckpt", "states-5.ckpt"]


def test_a_best_checkpoint_can_be_exported(tmp_path: Path) -> None:
    states = save_run(tmp_path, tuned("odd_base"), heads={"ks": HEAD}) / "states-40.ckpt"
    best = tmp_path / "ks" / "dev-best.ckpt"
    best.parent.mkdir()
    states.rename(best)
    assert main(["export", str(best), "--format", "fairseq", "-o", str(tmp_path / "a.pt")]) == 0
    assert torch.equal(load_hubert(tmp_path / "a.pt").mask_emb, tuned("odd_base").mask_emb)


@pytest.mark.parametrize("format", FORMATS)
def test_existing_files_and_folders_are_not_overwritten(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "run", tuned("odd_base"))
    out = tmp_path / "out"
    out.write_text("mine")
    assert main(["export", str(run), "--verbose", "--format", format, "-o", str(out)]) == 2
    assert "[file-exists]" in capsys.readouterr().err
    assert out.read_text() == "mine"
    out.unlink()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with user_error("file-exists", where=f"^-o {out}$"):
        export(run, format, out)
    assert names_in(out) == ["mine.txt"]
    assert names_in(tmp_path) == ["out", "run"]


def test_the_second_file_of_an_onnx_export_is_not_overwritten(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tuned("odd_base"))
    (tmp_path / "out.onnx.data").write_text("mine")
    with user_error("file-exists", where=r"out\.onnx\.data$"):
        export(run, "onnx", tmp_path / "out.onnx")


@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS[name].is_folder])
def test_an_empty_folder_may_exist(format: str, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tuned("odd_base"))
    (tmp_path / "out").mkdir()
    assert any(export(run, format, tmp_path / "out").iterdir())
    assert names_in(tmp_path) == ["out", "run"]


@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS[name].is_folder])
def test_an_empty_working_directory_may_be_the_output(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays the same folder: a shell in it sees the files."""
    run = save_run(tmp_path / "run", tuned("odd_base"), heads={"ks": HEAD})
    here = tmp_path / "here"
    here.mkdir()
    before = here.stat().st_ino
    monkeypatch.chdir(here)
    assert main(["export", str(run), "--format", format, "-o", "."]) == 0
    assert here.stat().st_ino == before
    assert names_in(Path()) == names_in(export(run, format, tmp_path / "out"))
    with user_error("file-exists", where=f"^-o {here}$"):
        export(run, format, ".")


@pytest.mark.parametrize("format", FORMATS)
def test_folders_that_are_not_empty_are_refused(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_run(tmp_path / "run", tuned("odd_base"))
    for out in ("/", str(tmp_path / "run" / "..")):
        assert main(["export", str(run), "--verbose", "--format", format, "-o", out]) == 2
        assert "[file-exists]" in capsys.readouterr().err
    if not FORMATS[format].is_folder:
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        with user_error("file-exists", where=r"/empty$"):
            export(run, format, ".")


def test_a_failure_leaves_the_empty_folder_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_run(tmp_path / "run", tuned("odd_base"))
    (tmp_path / "out").mkdir()

    def write(_run: SavedRun, out: Path, _options: Options) -> None:
        out.mkdir()
        (out / "a").write_text("a")
        (out / "b").write_text("b")
        (tmp_path / "out" / "b").write_text("mine")

    monkeypatch.setitem(FORMATS, "s3prl", Format(write, ("hubert",), is_folder=True))
    with user_error("file-unwritable", where=f"^-o {tmp_path / 'out'}$"):
        export(run, "s3prl", tmp_path / "out")
    assert names_in(tmp_path / "out") == ["b"]
    assert (tmp_path / "out" / "b").read_text() == "mine"


ENDLESS = """
import sys
from s3prl_mtl.cli.main import main
from s3prl_mtl.export.command import FORMATS, Format

def write(run, out, options):
    out.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()

FORMATS["fairseq"] = Format(write, ("hubert",), is_folder=False)
raise SystemExit(main(["export", "run", "--format", "fairseq", "-o", sys.argv[1]]))
"""


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start an export that stays in the middle of writing until its input ends."""
    save_run(tmp_path / "run", tuned("odd_base"))
    started: list[subprocess.Popen[str]] = []

    def start(out: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, out],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_export_leaves_nothing(
    number: signal.Signals, endless: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = endless("out")
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert names_in(tmp_path) == ["run"]


@pytest.mark.slow
def test_files_of_a_killed_export_are_removed_by_the_next_one_to_the_same_path(
    endless: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    killed, running, elsewhere = endless("out"), endless("out"), endless("out2")
    for process in (killed, elsewhere):
        process.kill()
        process.wait()
    assert len(names_in(tmp_path)) == 4
    save = export(tmp_path / "run", "fairseq", tmp_path / "out")
    content = save.read_bytes()
    left = [name for name in names_in(tmp_path) if name.startswith(".")]
    assert sorted(name.split(".")[1] for name in left) == ["out", "out2"]
    # The running one was not disturbed, and does not overwrite.
    running.communicate()
    assert running.returncode == 2
    assert save.read_bytes() == content
    assert [name for name in names_in(tmp_path) if name.startswith(".out.")] == []


def test_missing_folders_are_created_and_files_are_readable_by_others(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tuned("odd_base"))
    umask = os.umask(0o022)
    try:
        folder = export(run, "s3prl", tmp_path / "a" / "b" / "out")
        file = export(run, "fairseq", tmp_path / "a" / "hubert.pt")
    finally:
        os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert file.stat().st_mode & 0o777 == (folder / "upstream.pt").stat().st_mode & 0o777 == 0o644


def test_an_encoder_of_the_zoo_is_refused_by_all_formats_except_s3prl(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", load_upstream("fbank"), name="fbank")
    for format in ("fairseq", "transformers", "onnx"):
        with user_error("not-supported", where=f"--format {format}", fix="--format s3prl"):
            export(run, format, tmp_path / "out")
    assert names_in(tmp_path) == ["run"]
    assert names_in(export(run, "s3prl", tmp_path / "out")) == ["fbank.ckpt"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_encoder_of_another_package_is_refused(format: str, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", PluginUpstream(), name="theirs")
    with user_error("not-supported", where=f"--format {format}") as caught:
        export(run, format, tmp_path / "out")
    assert "'theirs'" in caught.value.what and "--format" not in str(caught.value.fix)


def test_unknown_runs_and_formats_are_named(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tuned("odd_base"))
    with user_error("unknown-name", where="^--format$", fix="'fairseq'"):
        export(run, "fairsek", tmp_path / "out")
    with user_error("checkpoint-missing", where=f"^RUN {tmp_path / 'nothing'}$"):
        export(tmp_path / "nothing", "fairseq", tmp_path / "out")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with user_error("checkpoint-format", where=r"other\.pt$"):
        export(tmp_path / "other.pt", "fairseq", tmp_path / "out")
    assert names_in(tmp_path) == ["other.pt", "run"]


def test_weights_that_do_not_fit_the_settings_are_named(tmp_path: Path) -> None:
    path = save_run(tmp_path / "run", tuned("odd_base")) / "states-40.ckpt"
    saved = checkpoints.load(path)
    saved.upstream["model.mask_emb"] = torch.zeros(3)
    checkpoints.save(saved, tmp_path / "run" / "states-41.ckpt")
    for format in FORMATS:
        with user_error("checkpoint-mismatch") as caught:
            export(tmp_path / "run", format, tmp_path / "out")
        assert "mask_emb" in caught.value.what and "(3,)" in caught.value.what
    assert names_in(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [
        ("transformers", "transformers", "transformers"),
        ("onnx", "onnx", "onnx"),
        ("onnx", "onnxscript", "onnx"),
    ],
)
def test_a_missing_package_says_how_to_install_it(
    format: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_run(tmp_path / "run", tuned("odd_base"))
    find_spec = importlib.util.find_spec

    def without(name: str, *rest: str) -> ModuleSpec | None:
        return None if name == package else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with user_error("missing-package", fix=rf"pip install 's3prl-mtl\[{extra}\]'") as caught:
        export(run, format, tmp_path / "out")
    assert package in caught.value.what
    assert names_in(tmp_path) == ["run"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_path_that_cannot_be_written_is_named(format: str, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tuned("odd_base"))
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        with user_error("file-unwritable", where=f"^-o {out}$") as caught:
            export(run, format, out)
        assert str(tmp_path / "file") in caught.value.what


FULL = """
import resource, sys
from s3prl_mtl.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
raise SystemExit(main(["export", "run", "--verbose", "--format", sys.argv[1], "-o", "out"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_nothing_behind(format: str, tmp_path: Path) -> None:
    save_run(tmp_path / "run", tuned("base_style"))
    done = subprocess.run(
        [sys.executable, "-c", FULL, format],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "[file-unwritable]" in done.stderr
    assert names_in(tmp_path) == ["run"]


def test_the_same_run_gives_the_same_files(tmp_path: Path) -> None:
    encoder = tuned("odd_base")
    run = save_run(tmp_path / "run", encoder, heads={"ks": HEAD})
    for format in ("fairseq", "s3prl", "transformers"):
        outs = [export(run, format, tmp_path / f"{format}-{number}") for number in (1, 2)]
        files = [
            {
                str(path.relative_to(out)): path.read_bytes()
                for path in ([out] if out.is_file() else out.rglob("*"))
                if path.is_file()
            }
            for out in outs
        ]
        assert list(files[0].values()) == list(files[1].values())
    move(encoder)
    other = export(save_run(tmp_path / "other", encoder), "fairseq", tmp_path / "other.pt")
    assert other.read_bytes() != (tmp_path / "fairseq-1").read_bytes()
