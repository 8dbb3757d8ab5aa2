"""Names of the export formats, their packages and options; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from s3prl_mtl.errors import UserError, nearest, require_packages

TRANSFORMERS = ("transformers",)
PACKAGES: dict[str, tuple[str, ...]] = {
    "fairseq": (),
    "transformers": TRANSFORMERS,
    "s3prl": (),
    "onnx": ("onnx", "onnxscript"),
    "xares": TRANSFORMERS,
    "hear": TRANSFORMERS,
}
"""Modules that a format needs."""
EXTRAS = {"xares": "transformers", "hear": "transformers"}
"""The extra that installs them, if it has another name than the format."""
WRAPPERS = ("xares", "hear")
"""Formats with one output, a hidden state or a sum of them, that is chosen."""


@dataclass(frozen=True)
class Options:
    """Choices of an export.

    Attributes:
        layer: the hidden state that a wrapper returns, 0 is the input of the first layer; None for
            the last one.
        task: the task whose input a wrapper returns: the weighted sum of layers.
        repository: the name on the hub that the output will have, for the model card.
    """

    layer: int | None = None
    task: str | None = None
    repository: str | None = None


def check_format(format: str, options: Options | None = None) -> None:
    """Check that a format exists and that its packages are installed, before a run is read.

    Raises:
        UserError: an unknown format, a package that is not installed, or an option that the format
            does not have.
    """
    if format not in PACKAGES:
        raise UserError(
            f"Unknown format {format!r}.",
            where="--format",
            fix=nearest(format, list(PACKAGES)),
            code="unknown-name",
        )
    require_packages(PACKAGES[format], where=f"--format {format}", extra=EXTRAS.get(format, format))
    chosen = options or Options()
    given = [f"--{name}" for name in ("layer", "task") if getattr(chosen, name) is not None]
    if given and (format not in WRAPPERS or len(given) > 1):
        raise UserError(
            f"The format {format} contains all hidden states."
            if format not in WRAPPERS
            else "Both select the output of the encoder.",
            where=" and ".join(given),
            fix="Leave it out." if format not in WRAPPERS else "Give one of them.",
            code="conflicting-options",
        )
