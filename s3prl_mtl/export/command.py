"""The command `export`: one encoder out of a run, in the form that another program loads."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.export import fairseq_file, onnx_file, s3prl_folder, transformers_folder
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.export.workplace import appearing_whole, ending_in_order, remove_stale
from s3prl_mtl.tracking.console import OUTPUT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """A form to export to.

    Args:
        write: writes a run to a path where nothing is.
        kinds: of upstreams that it takes, as `checkpoint_info` has them.
        is_folder: the path is a folder, not a file.
    """

    write: Callable[[SavedRun, Path], None]
    kinds: tuple[str, ...]
    is_folder: bool


FORMATS = {
    "fairseq": Format(fairseq_file.write, ("hubert",), is_folder=False),
    "transformers": Format(transformers_folder.write, ("hubert", "transformers"), is_folder=True),
    "s3prl": Format(s3prl_folder.write, ("hubert", "zoo"), is_folder=True),
    "onnx": Format(onnx_file.write, ("hubert",), is_folder=False),
}
KIND_NAMES = {
    "hubert": "HuBERT",
    "zoo": "of s3prl's zoo",
    "transformers": "of transformers (hf:...)",
}


def export(run: str | os.PathLike[str], format: str, out: str | os.PathLike[str]) -> Path:
    """Write the encoder of a run for another program. `out` appears whole or not at all.

    Args:
        run: a run's folder, of which the newest whole `states-*.ckpt` is taken, or one of its
            `.ckpt` files, such as `ks/dev-best.ckpt`.
        format: `fairseq`, `transformers`, `s3prl` or `onnx`.
        out: the file or folder to write; nothing may be there, but for an empty folder where the
            format is a folder. Folders above it are made.

    Returns:
        `out`.

    Raises:
        UserError: an unknown format, no such run, an upstream that the format does not take,
            something at `out`, a package that is not installed, or `out` cannot be written.
    """
    if format not in FORMATS:
        raise UserError(
            f"There is no format {format!r}.", where="--format", fix=nearest(format, list(FORMATS))
        )
    # `.` and `..` are folders too, and have names.
    chosen, path = FORMATS[format], Path(os.path.abspath(out))
    remove_stale(path)
    _refuse_existing(path, chosen)
    saved = SavedRun.open(Path(run))
    _refuse_other_kinds(saved, format)
    logger.info("Exporting step %d of %s.", saved.step, saved.path)
    with _saying_why_not(path), appearing_whole(path) as partial:
        chosen.write(saved, partial)
    return Path(out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("run", type=Path, help="a run's folder, or one of its .ckpt files")
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument("-o", "--out", type=Path, required=True, help="the file or folder to write")


def run(arguments: argparse.Namespace) -> None:
    """`export`: write, and say where."""
    with ending_in_order():
        path = export(arguments.run, arguments.format, arguments.out)
    OUTPUT.print(f"Wrote {path}", soft_wrap=True, markup=False, highlight=False)


def _refuse_existing(path: Path, chosen: Format) -> None:
    if chosen.is_folder and path.is_dir() and not any(path.iterdir()):
        return
    # The file of an ONNX export may have a second one beside it.
    places = [path, Path(f"{path}.data")] if chosen.write is onnx_file.write else [path]
    for found in places:
        if os.path.lexists(found):
            what = "is a folder" if found.is_dir() else "exists"
            raise UserError(
                f"{found} {what} already, and exports overwrite nothing.",
                where="-o",
                fix="Choose another name, or remove it first.",
            )


def _refuse_other_kinds(saved: SavedRun, format: str) -> None:
    kind = saved.kind
    if kind in FORMATS[format].kinds:
        return
    possible = [name for name, other in FORMATS.items() if kind in other.kinds]
    fit = " or ".join(KIND_NAMES[one] for one in FORMATS[format].kinds)
    raise UserError(
        f"The encoder of this run, {saved.upstream_name!r}, is not {fit}, which is all that the "
        f"format {format!r} takes.",
        where=str(saved.path),
        fix=f"Use --format {' or '.join(possible)}."
        if possible
        else "No format takes it; evaluate and use the run with s3prl-mtl itself.",
    )


@contextmanager
def _saying_why_not(path: Path) -> Iterator[None]:
    """Turn what a disk can refuse into an error of the user's.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except Exception as error:
        reason = _write_reason(error)
        if reason is None:
            raise
        raise UserError(
            f"The export could not be written: {reason}. Nothing is left of it.",
            where=str(path),
            fix="Name a folder that can be written and has space, with -o.",
        ) from error


def _write_reason(error: BaseException) -> str | None:
    """Why the disk refused; None for an error of another kind.

    torch and safetensors hide the system's error behind their own.
    """
    if isinstance(error, OSError):
        return error.strerror
    text = str(error)
    if type(error).__name__ == "SafetensorError" and "I/O error" in text:
        return text
    if isinstance(error, RuntimeError) and (
        "PytorchStreamWriter" in text or "unexpected pos" in text
    ):
        seen: BaseException | None = error
        while seen is not None:
            if isinstance(seen, OSError) and seen.strerror:
                return seen.strerror
            seen = seen.__cause__ or seen.__context__
        return "the disk is full, or a limit on the size of files was reached"
    return None
