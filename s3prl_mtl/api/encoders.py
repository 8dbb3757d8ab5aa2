"""The encoder of a run for other programs, and merged encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from s3prl_mtl.api.calls import PathLike, callable_from_python, comma_separated, listed
from s3prl_mtl.errors import UserError


@callable_from_python
def export(
    run: PathLike,
    *,
    format: str,
    out: PathLike,
    layer: int | None = None,
    task: str | None = None,
    push: str | None = None,
    private: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write the encoder of a run for another program: the command `export`.

    Args:
        run: the folder of a run, or one of its `.ckpt` files.
        format: `fairseq`, `transformers`, `s3prl`, `onnx`, `xares` or `hear`.
        out: the file or folder to write.
        layer: of `xares` and `hear`: the hidden state that they return; by default the last one.
        task: of `xares` and `hear`: the task whose weighted sum of layers they return.
        push: the repository on the hub to upload it to, `USER/NAME`.
        private: create that repository as a private one.
        revision: the branch to upload to; by default `main`.
        trust_remote_code: execute modelling code of the repository of the encoder.

    Returns:
        its path.

    Raises:
        UserError: an unknown format, a package that is not installed, an encoder that the format
            cannot hold, or an upload that the hub refuses.
    """
    from s3prl_mtl.export.formats import Options, check_format

    check_format(format, Options(layer, task))
    from s3prl_mtl.export import command

    return command.export(
        Path(run),
        format,
        Path(out),
        layer=layer,
        task=task,
        push=push,
        private=private,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


@callable_from_python
def merge(
    *,
    base: PathLike,
    tuned: PathLike | Sequence[PathLike],
    alpha: float | str | Sequence[float],
    out: PathLike,
    by_layer: bool = False,
) -> list[Path]:
    """Interpolate tuned encoders with the one that they were tuned from: the command `merge`.

    Args:
        base: the encoder before tuning: the name of an upstream, a fairseq file, or a run.
        tuned: a run, one of its `.ckpt` files, or a fairseq file; or several.
        alpha: ``base + alpha * (tuned - base)``. Several: a file for each, or one for each of
            `tuned`.
        out: `.ckpt`: the run with the merged encoder; `.pt`: a fairseq file.
        by_layer: alpha is the text `FIRST:LAST`, linear in between.

    Returns:
        the files.

    Raises:
        UserError: an encoder is missing or of another size, or `out` exists or does not fit.
    """
    from s3prl_mtl.export import merge as merging

    names = [str(name) for name in listed(tuned)]
    if not names:
        raise UserError("No tuned encoder is named.", where="--tuned", code="missing-option")
    return merging.merge(str(base), names, comma_separated(alpha) or "", out, by_layer)
