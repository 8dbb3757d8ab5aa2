"""Names of the export formats, and the packages that they need; imports nothing heavy."""

from __future__ import annotations

from s3prl_mtl.errors import UserError, nearest, require_packages

PACKAGES: dict[str, tuple[str, ...]] = {
    "fairseq": (),
    "transformers": ("transformers",),
    "s3prl": (),
    "onnx": ("onnx", "onnxscript"),
}
"""Modules that a format needs; the extra of the same name installs them."""


def check_format(format: str) -> None:
    """Check that a format exists and that its packages are installed, before a run is read.

    Raises:
        UserError: an unknown format, or a package that is not installed.
    """
    if format not in PACKAGES:
        raise UserError(
            f"Unknown format {format!r}.",
            where="--format",
            fix=nearest(format, list(PACKAGES)),
            code="unknown-name",
        )
    require_packages(PACKAGES[format], where=f"--format {format}", extra=format)
