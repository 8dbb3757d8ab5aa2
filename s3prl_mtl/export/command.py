"""Export the encoder of a run to a format of another program."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.errors import UserError
from s3prl_mtl.export import (
    fairseq_file,
    hub,
    onnx_file,
    s3prl_folder,
    transformers_folder,
    wrapped_folder,
)
from s3prl_mtl.export.formats import WRAPPERS, Options, check_format
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.export.staging import atomic_output, remove_stale
from s3prl_mtl.fileio.atomic import write_reason
from s3prl_mtl.fileio.paths import require_absent

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """An export format.

    Args:
        write: writes a run to an unused path.
        kinds: supported kinds of upstreams, as in `checkpoint_info`.
        is_folder: the output is a folder, not a file.
    """

    write: Callable[[SavedRun, Path, Options], None]
    kinds: tuple[str, ...]
    is_folder: bool


FORMATS = {
    "fairseq": Format(fairseq_file.write, ("hubert",), is_folder=False),
    "transformers": Format(transformers_folder.write, ("hubert", "transformers"), is_folder=True),
    "s3prl": Format(s3prl_folder.write, ("hubert", "zoo"), is_folder=True),
    "onnx": Format(onnx_file.write, ("hubert",), is_folder=False),
    **{
        name: Format(wrapped_folder.writer(name), ("hubert", "transformers"), is_folder=True)
        for name in WRAPPERS
    },
}
KIND_NAMES = {
    "hubert": "HuBERT",
    "zoo": "of s3prl's zoo",
    "transformers": "of transformers (hf:...)",
}


def export(
    run: str | os.PathLike[str],
    format: str,
    out: str | os.PathLike[str],
    *,
    layer: int | None = None,
    task: str | None = None,
    push: str | None = None,
    private: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write the encoder of a run for another program, atomically.

    Args:
        run: the folder of a run (its newest undamaged `states-*.ckpt`), or one of its `.ckpt`
            files, such as `ks/dev-best.ckpt`.
        format: `fairseq`, `transformers`, `s3prl`, `onnx`, `xares` or `hear`.
        out: the file or folder to write. It must not exist; an empty folder may, if the format is
            a folder. Missing folders above it are created.
        layer: the hidden state that `xares` and `hear` return; None for the last one.
        task: the task whose weighted sum of layers they return instead.
        push: a repository of Hugging Face to upload `out` to.
        private: create it as a private one.
        revision: the branch to upload to.
        trust_remote_code: execute modelling code of the repository that the encoder is from.

    Returns:
        `out`.

    Raises:
        UserError: an unknown format, no such run, an upstream that the format does not support,
            an existing `out`, a package that is not installed, `out` cannot be written, or the
            upload is refused.
    """
    options = Options(layer, task, push)
    check_format(format, options)
    for flag, given in (("--private", private), ("--revision", revision)):
        if given and push is None:
            raise UserError(
                f"{flag} requires --push.",
                where=flag,
                fix="Give the repository: --push USER/NAME.",
                code="missing-option",
            )
    # An absolute path has a name; `.` and `..` have none.
    chosen, path = FORMATS[format], Path(os.path.abspath(out))
    remove_stale(path)
    _refuse_existing(path, chosen)
    if push is not None:
        hub.check_login(push)
    saved = SavedRun.open(Path(run), trust_remote_code)
    _refuse_other_kinds(saved, format)
    logger.info("Exporting step %d of %s.", saved.step, saved.path)
    with write_errors(path), atomic_output(path) as partial:
        chosen.write(saved, partial, options)
    if push is not None:
        second = Path(f"{path}.data")
        is_pair = chosen.write is onnx_file.write and second.is_file()
        address = hub.push([path, second] if is_pair else [path], push, private, revision)
        logger.info("Uploaded to %s", address)
    return Path(out)


def _refuse_existing(path: Path, chosen: Format) -> None:
    if chosen.is_folder and path.is_dir() and not any(path.iterdir()):
        return
    # The file of an ONNX export may have a second one beside it.
    places = [path, Path(f"{path}.data")] if chosen.write is onnx_file.write else [path]
    for found in places:
        require_absent(found, f"-o {found}")


def _refuse_other_kinds(saved: SavedRun, format: str) -> None:
    kind = saved.kind
    if kind in FORMATS[format].kinds:
        return
    possible = [name for name, other in FORMATS.items() if kind in other.kinds]
    fit = " or ".join(KIND_NAMES[one] for one in FORMATS[format].kinds)
    raise UserError(
        f"The format {format!r} takes encoders that are {fit}; that of this run, "
        f"{saved.upstream_name!r}, is not.",
        where=f"--format {format}, {saved.path}",
        fix=f"Use --format {' or '.join(possible)}."
        if possible
        else "No format takes it; evaluate and use the run with s3prl-mtl itself.",
        code="not-supported",
    )


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise a `UserError` for failed writes: the disk is full, or the folder is not writable."""
    try:
        yield
    except Exception as error:  # safetensors raises its own kind of Exception
        reason = write_reason(error)
        if reason is None:
            raise
        raise UserError(
            f"The output could not be written: {reason}. Partial files were removed.",
            where=f"-o {path}",
            fix="Choose a writable folder with free space.",
            code="file-unwritable",
        ) from error
